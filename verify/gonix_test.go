package verify_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
	"github.com/google/go-cmp/cmp"
	"github.com/nix-community/go-nix/pkg/narinfo"
	"github.com/nix-community/go-nix/pkg/narinfo/signature"
	"github.com/nix-community/go-nix/pkg/nixbase32"
	"github.com/nix-community/go-nix/pkg/nixhash"
	"pgregory.net/rapid"
)

// differences compares our reading of a narinfo with go-nix's.
func differences(text string) (string, error) {
	ours, err := verify.ParseNarInfo(text)
	if err != nil {
		return "", fmt.Errorf("ours: %w", err)
	}
	theirs, err := narinfo.Parse(strings.NewReader(text))
	if err != nil {
		return "", fmt.Errorf("go-nix: %w", err)
	}
	sigs := make([]string, 0, len(theirs.Signatures))
	for _, s := range theirs.Signatures {
		sigs = append(sigs, s.String())
	}
	fileHash := ""
	if theirs.FileHash != nil {
		fileHash = theirs.FileHash.Format(nixhash.NixBase32, true)
	}
	type fields struct {
		Path, URL, Compression, FileHash, NarHash, Deriver, CA, References, Sigs, Fingerprint string
		FileSize, NarSize                                                                     uint64
	}
	deriver := theirs.Deriver
	if deriver == "unknown-deriver" {
		deriver = ""
	}
	a := fields{
		ours.StorePath.String(), ours.URL, ours.Compression, ours.FileHash, ours.NarHash.String(), ours.Deriver, ours.CA,
		strings.Join(ours.References, " "), strings.Join(ours.Sigs, " "), ours.Fingerprint(),
		uint64(ours.FileSize), uint64(ours.NarSize),
	}
	b := fields{
		theirs.StorePath, theirs.URL, theirs.Compression, fileHash, theirs.NarHash.Format(nixhash.NixBase32, true), deriver, theirs.CA,
		strings.Join(theirs.References, " "), strings.Join(sigs, " "), theirs.Fingerprint(),
		theirs.FileSize, theirs.NarSize,
	}
	return cmp.Diff(b, a), nil
}

func TestGoNixReadsRealNarInfosAsWeDo(t *testing.T) {
	for _, dir := range []string{"cache.nixos.org", "nix"} {
		for name, text := range fixtures(t, dir) {
			if diff, err := differences(text); err != nil || diff != "" {
				t.Errorf("%s/%s: %v\n%s", dir, name, err, diff)
			}
		}
	}
}

func TestGoNixReadsDrawnNarInfosAsWeDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := genNarInfo.Draw(t, "narinfo").String()
		if diff, err := differences(text); err != nil || diff != "" {
			t.Fatalf("%v\n%s\n%s", err, diff, text)
		}
	})
}

func TestWhatIsPrintedIsReadBackTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genNarInfo.Draw(t, "narinfo")
		n.System = rapid.SampledFrom([]string{"", "x86_64-linux"}).Draw(t, "system")
		n.CA = rapid.SampledFrom([]string{"", "text:" + genHash.Draw(t, "ca").String()}).Draw(t, "content address")
		got, err := verify.ParseNarInfo(n.String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(n, got, comparePaths); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestWhatGoNixSignedVerifiesAndTheOtherWayRound(t *testing.T) {
	secret, public, err := signature.GenerateKeypair("gonix-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	mine := newSigner("mine-1", "mine")
	minePublic, err := signature.ParsePublicKey(mine.public())
	if err != nil {
		t.Fatal(err)
	}
	keys := mustKeys(t, []string{public.String()}, nil)
	rapid.Check(t, func(t *rapid.T) {
		n := genNarInfo.Draw(t, "narinfo")
		sig, err := secret.Sign(nil, n.Fingerprint())
		if err != nil {
			t.Fatal(err)
		}
		n.Sigs = append(n.Sigs, sig.String())
		if _, err := keys.Verify(n); err != nil {
			t.Fatal(err)
		}
		own, err := signature.ParseSignature(mine.sign(n))
		if err != nil {
			t.Fatal(err)
		}
		if !minePublic.Verify(n.Fingerprint(), own) {
			t.Fatal("go-nix does not accept our fingerprint's signature")
		}
	})
}

func TestGoNixWritesHashesAsWeDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := genHash.Draw(t, "hash")
		theirs := nixhash.MustNewHashWithEncoding(nixhash.SHA256, h[:], nixhash.NixBase32, true)
		if theirs.String() != h.String() || h.Base32() != nixbase32.EncodeToString(h[:]) {
			t.Fatalf("go-nix writes %v, we %v", theirs, h)
		}
		for _, e := range []nixhash.Encoding{nixhash.Base16, nixhash.NixBase32, nixhash.Base64, nixhash.SRI} {
			text := theirs.Format(e, true)
			got, err := verify.ParseHash(text)
			if err != nil || got != h {
				t.Fatalf("%s: %v, %v", text, got, err)
			}
		}
	})
}

func TestFingerprintsDoNotDependOnTheOrderOfReferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genNarInfo.Draw(t, "narinfo")
		want := n.Fingerprint()
		if len(n.References) > 0 {
			n.References = append(n.References, n.References[0]) // a repeat counts once
		}
		shuffled := rapid.Permutation(n.References).Draw(t, "shuffled")
		n.References = append([]string(nil), shuffled...)
		if got := n.Fingerprint(); got != want {
			t.Fatalf("%s\n%s", got, want)
		}
		if diff := cmp.Diff(shuffled, n.References); len(shuffled) > 0 && diff != "" {
			t.Fatalf("the fingerprint reordered the narinfo: %s", diff)
		}
	})
}
