package verify_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

// kilobyte returns a narinfo of about 1 kB, the usual size.
func kilobyte(t testing.TB) string {
	t.Helper()
	text := string(readFile(t, "testdata/nix/ra82alsq9551qdp8dj900bj9nbcsy15v.narinfo"))
	if len(text) < 1000 || len(text) > 1500 {
		t.Fatalf("the fixture has %d bytes", len(text))
	}
	return text
}

// perRun returns the bytes allocated by one call of f, on average.
func perRun(runs uint64, f func()) uint64 {
	var before, after runtime.MemStats
	f()
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / runs
}

func TestParsingAKilobyteAllocatesAtMostFour(t *testing.T) {
	text := kilobyte(t)
	got := perRun(1000, func() {
		if _, err := verify.ParseNarInfo(text); err != nil {
			t.Error(err)
		}
	})
	if got > 4<<10 {
		t.Errorf("%d bytes allocated for %d parsed", got, len(text))
	}
}

// A hostile narinfo of the greatest size must not cost many times its own memory.
func TestHostileNarInfosCostNoMoreThanTheirSizeAllows(t *testing.T) {
	for what, line := range map[string]string{
		"spaces":     "References: " + strings.Repeat(" ", verify.MaxNarInfo-20) + "\n",
		"references": "References:" + strings.Repeat(" 7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-x", (verify.MaxNarInfo-20)/35) + "\n",
		"short then long": "References: 7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-x" +
			strings.Repeat(" 7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-"+strings.Repeat("x", 200), (verify.MaxNarInfo-60)/234) + "\n",
		"signatures": strings.Repeat("Sig: \n", (verify.MaxNarInfo-20)/6),
		"unknown":    strings.Repeat("a: \n", (verify.MaxNarInfo-20)/4),
		"no colon":   strings.Repeat("a\n", (verify.MaxNarInfo-20)/2),
	} {
		if len(line) > verify.MaxNarInfo || len(line) < verify.MaxNarInfo-300 {
			t.Fatalf("%s: %d bytes", what, len(line))
		}
		got := testing.AllocsPerRun(1, func() { _, _ = verify.ParseNarInfo(line) })
		if got > 100 {
			t.Errorf("%s: %.0f allocations", what, got)
		}
		if bytes := perRun(1, func() { _, _ = verify.ParseNarInfo(line) }); bytes > 16*verify.MaxNarInfo {
			t.Errorf("%s: %d bytes allocated", what, bytes)
		}
	}
}

func BenchmarkParseNarInfo(b *testing.B) {
	text := kilobyte(b)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verify.ParseNarInfo(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseLargestNarInfo(b *testing.B) {
	text := fixtures(b, "cache.nixos.org")["iqly37f04lbihrxw9zwljdy1maay23kc.narinfo"]
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verify.ParseNarInfo(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadNarInfo(b *testing.B) {
	text := kilobyte(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verify.ReadNarInfo(strings.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrintNarInfo(b *testing.B) {
	n := mustParse(b, kilobyte(b))
	b.ReportAllocs()
	for b.Loop() {
		_ = n.String()
	}
}

func BenchmarkFingerprint(b *testing.B) {
	n := mustParse(b, kilobyte(b))
	b.ReportAllocs()
	for b.Loop() {
		_ = n.Fingerprint()
	}
}

func BenchmarkVerify(b *testing.B) {
	n := mustParse(b, kilobyte(b))
	keys := mustKeys(b, []string{centralKey, strings.TrimSpace(string(readFile(b, "testdata/nix/key.pub")))}, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Verify(n); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSHA256 is what a Reader's throughput is measured against.
func BenchmarkSHA256(b *testing.B) {
	nar := make([]byte, 16<<20)
	b.SetBytes(int64(len(nar)))
	for b.Loop() {
		sha256.Sum256(nar)
	}
}

func BenchmarkReader(b *testing.B) {
	nar := make([]byte, 16<<20)
	sum := verify.Hash(sha256.Sum256(nar))
	for _, c := range []struct {
		name string
		read int
	}{{"32KiB", 32 << 10}, {"512B", 512}} {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, c.read)
			b.SetBytes(int64(len(nar)))
			b.ReportAllocs()
			for b.Loop() {
				r := struct{ io.Reader }{verify.NewReader(bytes.NewReader(nar), sum, int64(len(nar)))}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
