package nar_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	gonar "github.com/nix-community/go-nix/pkg/nar"
	"pgregory.net/rapid"

	"github.com/flurry-nix/flurry/store/nar"
)

// dump returns what Nix itself writes for the tree.
func dump(t testing.TB, root string) []byte {
	t.Helper()
	var out, problem bytes.Buffer
	cmd := exec.Command("nix-store", "--dump", root)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("nix-store --dump: %v: %s", err, &problem)
	}
	return out.Bytes()
}

func open(t testing.TB, root string) *nar.NAR {
	t.Helper()
	n, err := nar.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// plain hides everything but Write.
type plain struct{ io.Writer }

func whole(t testing.TB, n *nar.NAR) []byte {
	t.Helper()
	var b bytes.Buffer
	if k, err := n.WriteRange(t.Context(), plain{&b}, 0, n.Size()); err != nil || k != n.Size() {
		t.Fatalf("wrote %d of %d bytes: %v", k, n.Size(), err)
	}
	return b.Bytes()
}

func write(t testing.TB, path string, content []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func filler(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

// oddTree has all that Linux allows in a tree, and every size near a limit of the writer.
func oddTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "odd")
	for i, name := range []string{
		"plain", "~nix~case~hack~1", "A~nix~case~hack~1", "a", "A", "..hidden", "...", ".x", " ", ")", "(", "\xff\xfe", "new\nline",
		"ünï", "a.b", "a-b", "a b", "1234567", "12345678", "123456789", strings.Repeat("n", 255), "\x01",
	} {
		write(t, filepath.Join(root, "names", name), filler(i), 0o644)
	}
	for _, size := range []int{0, 1, 7, 8, 9, 64<<10 - 1, 64 << 10, 64<<10 + 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 3} {
		write(t, filepath.Join(root, "sizes", strconv.Itoa(size)), filler(size), 0o644)
	}
	for mode := range fs.FileMode(8) {
		write(t, filepath.Join(root, "modes", strconv.Itoa(int(mode))), []byte("#!"), 0o400|mode<<6|mode)
	}
	write(t, filepath.Join(root, strings.Repeat("deep/", 40), "end"), []byte("x"), 0o755)
	for _, dir := range []string{"empty", "nested/empty", "nested/last/empty", "zz"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"dangling": "nowhere", "up": "..", "dir": "empty", "abs": "/nix/store/x", "self": "self",
		"long": strings.Repeat("t/", 2000), "raw": "\xff", "names/zlink": "plain"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestIsWhatNixDumps(t *testing.T) {
	odd := oddTree(t)
	empty := t.TempDir()
	for _, root := range []string{odd, empty, filepath.Join(odd, "sizes/0"), filepath.Join(odd, "sizes/9"), filepath.Join(odd, "modes/1"),
		filepath.Join(odd, "sizes/1048579"), filepath.Join(odd, "dangling"), filepath.Join(odd, "dir"), filepath.Join(odd, "nested")} {
		n := open(t, root)
		want := dump(t, root)
		if n.Size() != int64(len(want)) {
			t.Errorf("%s: size %d, Nix writes %d", root, n.Size(), len(want))
		}
		if !bytes.Equal(whole(t, n), want) {
			t.Errorf("%s: not what Nix writes", root)
		}
		var viaReaderFrom bytes.Buffer
		if _, err := n.WriteRange(t.Context(), &viaReaderFrom, 0, n.Size()); err != nil || !bytes.Equal(viaReaderFrom.Bytes(), want) {
			t.Errorf("%s: through io.ReaderFrom: not what Nix writes (%v)", root, err)
		}
	}
}

func TestGoNixReadsWhatWasWritten(t *testing.T) {
	root := oddTree(t)
	if err := os.Remove(filepath.Join(root, "names/)")); err != nil { // ends a directory for go-nix
		t.Fatal(err)
	}
	r, err := gonar.NewReader(bytes.NewReader(whole(t, open(t, root))))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seen := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen++
		fi, err := os.Lstat(root + strings.TrimSuffix(h.Path, "/"))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().IsRegular() {
			got, _ := io.ReadAll(r)
			want, _ := os.ReadFile(root + h.Path)
			if !bytes.Equal(got, want) || h.Executable != (fi.Mode()&0o100 != 0) {
				t.Errorf("%q differs", h.Path)
			}
		}
	}
	want := 0
	err = filepath.WalkDir(root, func(string, fs.DirEntry, error) error { want++; return nil })
	if err != nil || seen != want {
		t.Errorf("%d of %d entries (%v)", seen, want, err)
	}
}

func TestEveryRangeIsASliceOfTheWhole(t *testing.T) {
	n := open(t, oddTree(t))
	all := whole(t, n)
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.Int64Range(0, n.Size()).Draw(t, "off")
		length := rapid.Int64Range(0, n.Size()-off).Draw(t, "length")
		var viaWrite, viaReaderFrom bytes.Buffer
		for _, w := range []io.Writer{plain{&viaWrite}, &viaReaderFrom} {
			if k, err := n.WriteRange(context.Background(), w, off, length); err != nil || k != length {
				t.Fatalf("wrote %d: %v", k, err)
			}
		}
		if want := all[off:][:length]; !bytes.Equal(viaWrite.Bytes(), want) || !bytes.Equal(viaReaderFrom.Bytes(), want) {
			t.Fatal("differs")
		}
	})
	for off := range int64(3000) { // every boundary of the first entries
		var b bytes.Buffer
		if _, err := n.WriteRange(t.Context(), plain{&b}, off, 1); err != nil || b.Bytes()[0] != all[off] {
			t.Fatalf("byte %d: %v", off, err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, n.Size() + 1}, {n.Size() + 1, 0}, {1, n.Size()}, {1 << 62, 1 << 62}} {
		if _, err := n.WriteRange(t.Context(), io.Discard, r[0], r[1]); !errors.Is(err, nar.ErrRange) {
			t.Errorf("range %v: %v", r, err)
		}
	}
}

func TestHTTPResponseCarriesIt(t *testing.T) {
	n := open(t, oddTree(t))
	want := whole(t, n)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-nix-nar")
		w.Header().Set("Content-Length", strconv.FormatInt(n.Size(), 10))
		if _, err := n.WriteRange(r.Context(), w, 0, n.Size()); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d of %d bytes: %v", len(got), len(want), err)
	}
}

func TestChangedTreeIsAnErrorAndNeverOtherBytes(t *testing.T) {
	const small, large = "d/small", "d/large"
	cases := map[string]func(root string) error{
		"small shrank":   func(r string) error { return os.Truncate(r+"/"+small, 3) },
		"small grew":     func(r string) error { return os.Truncate(r+"/"+small, 5000) },
		"small vanished": func(r string) error { return os.Remove(r + "/" + small) },
		"large shrank":   func(r string) error { return os.Truncate(r+"/"+large, 3) },
		"large grew":     func(r string) error { return os.Truncate(r+"/"+large, 5<<20) },
		"large vanished": func(r string) error { return os.Remove(r + "/" + large) },
		"file now a link": func(r string) error {
			return errors.Join(os.Rename(r+"/"+small, r+"/x"), os.Symlink("../x", r+"/"+small))
		},
		"file now a fifo": func(r string) error {
			return errors.Join(os.Remove(r+"/"+small), syscall.Mkfifo(r+"/"+small, 0o644))
		},
		"file now a directory": func(r string) error {
			return errors.Join(os.Remove(r+"/"+small), os.Mkdir(r+"/"+small, 0o755))
		},
		"directory now a link": func(r string) error {
			return errors.Join(os.Rename(r+"/d", r+"/e"), os.Symlink("e", r+"/d"))
		},
		"root gone":     os.RemoveAll,
		"root replaced": func(r string) error { return errors.Join(os.Rename(r, r+"2"), os.CopyFS(r, os.DirFS(r+"2"))) },
	}
	for name, change := range cases {
		for kind, wrap := range map[string]func(*bytes.Buffer) io.Writer{
			"written":     func(b *bytes.Buffer) io.Writer { return plain{b} },
			"by ReadFrom": func(b *bytes.Buffer) io.Writer { return b },
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				root := filepath.Join(t.TempDir(), "root")
				write(t, filepath.Join(root, small), filler(1000), 0o644)
				write(t, filepath.Join(root, large), filler(3<<20), 0o644)
				n := open(t, root)
				before := whole(t, n)
				if err := change(root); err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				k, err := n.WriteRange(t.Context(), wrap(&b), 0, n.Size())
				if !errors.Is(err, nar.ErrChanged) && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("error %v", err)
				}
				if k != int64(b.Len()) || k >= n.Size() || !bytes.Equal(b.Bytes(), before[:k]) {
					t.Errorf("%d bytes reported, %d written, not a proper prefix", k, b.Len())
				}
			})
		}
	}
}

// An archive may have no file whose opening would show that the tree is another one.
func TestAppendGivesTheTreeThatWasWalkedOrAnError(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"file":            func(p string) error { return os.WriteFile(p, filler(200), 0o644) },
		"empty file":      func(p string) error { return os.WriteFile(p, nil, 0o755) },
		"link":            func(p string) error { return os.Symlink("target", p) },
		"empty directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"directory of links": func(p string) error {
			return errors.Join(os.Mkdir(p, 0o755), os.Symlink("..", p+"/up"), os.Mkdir(p+"/empty", 0o755))
		},
		"tree": func(p string) error { return os.CopyFS(p, os.DirFS(filepath.Dir(p)+"/odd")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, size := range []int{0, 7, 64<<10 - 1, 64 << 10, 300 << 10} {
				write(t, filepath.Join(dir, "odd", "d", strconv.Itoa(size)), filler(size), 0o644)
			}
			root := filepath.Join(dir, "root")
			if err := put(root); err != nil {
				t.Fatal(err)
			}
			n := open(t, root)
			b, err := n.Append(t.Context(), []byte("before"))
			if err != nil || !bytes.Equal(b, append([]byte("before"), whole(t, n)...)) {
				t.Errorf("%d bytes of %d, %v", len(b), n.Size(), err)
			}
			if err := os.Rename(root, root+"2"); err != nil { // its inode stays in use
				t.Fatal(err)
			}
			if b, err := n.Append(t.Context(), b[:3]); err == nil || string(b) != "bef" {
				t.Errorf("of nothing: %d bytes, %v", len(b), err)
			}
			if err := put(root); err != nil {
				t.Fatal(err)
			}
			if b, err := n.Append(t.Context(), b[:3]); !errors.Is(err, nar.ErrChanged) || string(b) != "bef" {
				t.Errorf("of one that looks the same: %d bytes, %v", len(b), err)
			}
		})
	}
}

// changer lets the file shrink while it is being read.
type changer struct {
	plain
	at     int
	change func()
}

func (c *changer) Write(p []byte) (int, error) {
	if c.at -= len(p); c.at < 0 && c.change != nil {
		c.change()
		c.change = nil
	}
	return c.plain.Write(p)
}

func TestFileThatShrinksMidStreamIsAnError(t *testing.T) {
	for _, size := range []int64{1 << 20, 5 << 20} {
		path := filepath.Join(t.TempDir(), "f")
		write(t, path, filler(3<<20), 0o644)
		n := open(t, path)
		var b bytes.Buffer
		w := &changer{plain: plain{&b}, at: 1 << 20, change: func() {
			if err := os.Truncate(path, size); err != nil {
				t.Error(err)
			}
		}}
		if _, err := n.WriteRange(t.Context(), w, 0, n.Size()); !errors.Is(err, nar.ErrChanged) {
			t.Errorf("to %d: %v", size, err)
		}
	}
}

func TestOtherFileTypesAreErrors(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{root, filepath.Join(root, "fifo"), "/dev/null"} {
		if _, err := nar.Open(t.Context(), path); !errors.Is(err, nar.ErrUnsupported) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := nar.Open(t.Context(), filepath.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestTooDeepIsAnError(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d/", 600))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := nar.Open(t.Context(), deep[:len(deep)-2*600]); !errors.Is(err, nar.ErrUnsupported) {
		t.Error(err)
	}
}

func TestEndedContextAndFailingWriterStopIt(t *testing.T) {
	n := open(t, oddTree(t))
	ctx, cancel := context.WithCancel(t.Context())
	w := &changer{plain: plain{io.Discard}, at: 0, change: cancel}
	if k, err := n.WriteRange(ctx, w, 0, n.Size()); !errors.Is(err, context.Canceled) || k >= n.Size() {
		t.Errorf("wrote %d: %v", k, err)
	}
	if _, err := nar.Open(ctx, oddTree(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if k, err := n.WriteRange(t.Context(), plain{failing{}}, 0, n.Size()); !errors.Is(err, io.ErrClosedPipe) || k != 0 {
		t.Errorf("wrote %d: %v", k, err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestNoDescriptorStaysOpen(t *testing.T) {
	count := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	root := oddTree(t)
	n := open(t, root)
	before := count()
	for i := range int64(20) {
		n.WriteRange(t.Context(), io.Discard, i*1000, n.Size()/2)
		open(t, root)
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func manyFiles(t testing.TB, count int) string {
	root := t.TempDir()
	for i := range count {
		dir := filepath.Join(root, fmt.Sprintf("dir%03d", i%200))
		if i < 200 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("module_%05d.py", i)), filler(i%3000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestManySmallFiles(t *testing.T) {
	root := manyFiles(t, 4_000)
	if got, want := sha256.Sum256(whole(t, open(t, root))), sha256.Sum256(dump(t, root)); got != want {
		t.Error("not what Nix writes")
	}
}

// mixedTree is one that two goroutines read in turns: many small files with large ones among them.
func mixedTree(t *testing.T) string {
	root := manyFiles(t, 1_000)
	for i := range 5 {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprintf("dir%03d", 40*i), "large"), filler(50_000*(i+1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTurnsGiveEveryRange(t *testing.T) {
	root := mixedTree(t)
	n := open(t, root)
	all := whole(t, n)
	if want := dump(t, root); !bytes.Equal(all, want) {
		t.Fatal("not what Nix writes")
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		off := r.Int64N(n.Size())
		length := r.Int64N(n.Size() - off + 1)
		var viaWrite, viaReaderFrom bytes.Buffer
		for _, w := range []io.Writer{plain{&viaWrite}, &viaReaderFrom} {
			if k, err := n.WriteRange(t.Context(), w, off, length); err != nil || k != length {
				t.Fatalf("wrote %d of %d: %v", k, length, err)
			}
		}
		if want := all[off:][:length]; !bytes.Equal(viaWrite.Bytes(), want) || !bytes.Equal(viaReaderFrom.Bytes(), want) {
			t.Fatalf("%d+%d differs", off, length)
		}
	}
}

func TestTroubleInTurnsEndsBoth(t *testing.T) {
	root := mixedTree(t)
	n := open(t, root)
	all := whole(t, n)
	fds := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	before := fds()
	for i := range 12 {
		name := filepath.Join(root, fmt.Sprintf("dir%03d", i*16), fmt.Sprintf("module_%05d.py", i*16))
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, append(content, 'x'), 0o644); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		k, err := n.WriteRange(t.Context(), plain{&b}, 0, n.Size())
		if !errors.Is(err, nar.ErrChanged) || k != int64(b.Len()) || !bytes.Equal(b.Bytes(), all[:k]) {
			t.Fatalf("file %d: wrote %d: %v", i, k, err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for at := 1; at < 9; at++ { // the writer fails at its write number at
		left := at
		var b bytes.Buffer
		k, err := n.WriteRange(t.Context(), plain{writerFunc(func(p []byte) (int, error) {
			if left--; left == 0 {
				return 0, io.ErrClosedPipe
			}
			return b.Write(p)
		})}, 0, n.Size())
		if !errors.Is(err, io.ErrClosedPipe) || k != int64(b.Len()) || !bytes.Equal(b.Bytes(), all[:k]) {
			t.Fatalf("write %d: wrote %d: %v", at, k, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &changer{plain: plain{io.Discard}, at: 1 << 20, change: cancel}
	if k, err := n.WriteRange(ctx, w, 0, n.Size()); !errors.Is(err, context.Canceled) || k >= n.Size() {
		t.Errorf("wrote %d: %v", k, err)
	}
	if after := fds(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
