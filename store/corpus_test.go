package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	gonar "github.com/nix-community/go-nix/pkg/nar"

	"github.com/flurry-nix/flurry/verify"
)

// corpus unpacks the corpus that lab/make-corpus made in $FLURRY_CORPUS into a store of its own.
func corpus(t testing.TB) (n *nixStore, paths []verify.StorePath, key string) {
	t.Helper()
	dir := os.Getenv("FLURRY_CORPUS")
	if dir == "" {
		if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
			t.Fatal("FLURRY_CORPUS is not set: make a corpus with lab/make-corpus DIR medium and set it to DIR")
		}
		t.Skip("FLURRY_CORPUS is not set; see lab/README.md")
	}
	list, err := os.ReadFile(filepath.Join(dir, "paths.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	n = newNixStore(t)
	cmd := n.command("nix", "copy", "--no-check-sigs", "--from", "file://"+filepath.Join(dir, "cache"), "--to", n.chroot())
	for line := range strings.Lines(string(list)) {
		p, err := verify.ParseStorePath(strings.Fields(line)[0])
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
		cmd.Args = append(cmd.Args, p.String())
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nix copy: %v: %s", err, out)
	}
	return n, paths, strings.TrimSpace(string(pub))
}

func TestEveryPathOfTheCorpus(t *testing.T) {
	n, paths, key := corpus(t)
	keys, err := verify.NewKeys([]string{key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, n.config(), keys)
	s.judged(t, len(paths))
	for _, p := range paths {
		if !s.Shared(p.Hash(), verify.ScopePublic) {
			t.Errorf("%s is not shared", p)
		}
		info, err := s.Info(t.Context(), p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Verify(info); err != nil {
			t.Error(err)
		}
		archive, err := s.NAR(t.Context(), p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		if archive.Size() != info.NarSize {
			t.Errorf("%s: %d bytes, %d are signed", p, archive.Size(), info.NarSize)
		}
		ours, signed := sha256.New(), verify.NewChecker(info.NarHash, info.NarSize)
		if _, err := archive.WriteRange(t.Context(), io.MultiWriter(ours, signed), 0, archive.Size()); err != nil {
			t.Fatal(err)
		}
		if err := signed.Finish(); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		nixs := sha256.New()
		dump := exec.Command("nix-store", "--dump", filepath.Join(n.config().RealDir, p.Base()))
		dump.Stdout = nixs
		if err := dump.Run(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(nixs.Sum(nil), ours.Sum(nil)) {
			t.Errorf("%s: nix-store --dump writes otherwise", p)
		}
		if archive.Size() < 1<<20 {
			readable(t, archive.Size(), func(w io.Writer) error {
				_, err := archive.WriteRange(t.Context(), w, 0, archive.Size())
				return err
			})
		}
	}
}

// readable checks that go-nix reads what write writes, to its end.
func readable(t *testing.T, size int64, write func(io.Writer) error) {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriterSize(&b, 1<<16)
	if err := errors.Join(write(w), w.Flush()); err != nil || int64(b.Len()) != size {
		t.Fatalf("%d of %d bytes: %v", b.Len(), size, err)
	}
	r, err := gonar.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for err == nil {
		_, err = r.Next()
	}
	if err != io.EOF {
		t.Errorf("go-nix: %v", err)
	}
}
