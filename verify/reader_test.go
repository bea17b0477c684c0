package verify_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/flurry-nix/flurry/verify"
	"pgregory.net/rapid"
)

var errSource = errors.New("the source broke")

// sizes are around everything a Reader's buffers could stumble over.
var genSize = rapid.OneOf(
	rapid.IntRange(0, 64),
	rapid.SampledFrom([]int{4095, 4096, 4097, 4098, 8192, 65535, 65536, 65537, 69631, 69632, 69633, 139264}),
	rapid.IntRange(0, 200_000),
)

// drawNar draws a NAR's worth of bytes; the Reader does not look into them.
func drawNar(t *rapid.T) []byte {
	b := make([]byte, genSize.Draw(t, "size"))
	x := rapid.Uint32().Draw(t, "bytes")
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// drawSource wraps b the way sources behave: whole, byte for byte, in halves, with the error beside
// the last bytes, in pieces of any length, with empty reads between.
func drawSource(t *rapid.T, r io.Reader) io.Reader {
	switch rapid.IntRange(0, 5).Draw(t, "source") {
	case 0:
		return r
	case 1:
		return iotest.OneByteReader(r)
	case 2:
		return iotest.HalfReader(r)
	case 3:
		return iotest.DataErrReader(r)
	case 4:
		return &pieces{r, rapid.SliceOfN(rapid.IntRange(0, 70_000), 1, 8).Draw(t, "pieces"), 0}
	default:
		return iotest.DataErrReader(iotest.HalfReader(r))
	}
}

// pieces reads at most so many bytes at a time, over and over; 0 is an empty read, which io.Reader
// allows, and never the only piece.
type pieces struct {
	r     io.Reader
	sizes []int
	i     int
}

func (p *pieces) Read(b []byte) (int, error) {
	size := p.sizes[p.i%len(p.sizes)]
	p.i++
	if size == 0 && p.i%2 == 1 {
		return 0, nil
	}
	return p.r.Read(b[:min(len(b), max(size, 1))])
}

// readAll reads as a client with buffers of any size does, and checks that the end sticks.
func readAll(t *rapid.T, r io.Reader) ([]byte, error) {
	var got []byte
	sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 8), rapid.IntRange(1, 100_000)), 1, 4).Draw(t, "reads")
	for i := 0; ; i++ {
		buf := make([]byte, sizes[i%len(sizes)])
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err == nil {
			continue
		}
		for range 3 {
			if n, again := r.Read(buf); n != 0 || again != err {
				t.Fatalf("after %v: %d bytes, %v", err, n, again)
			}
		}
		return got, err
	}
}

func TestTheSignedBytesPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nar := drawNar(t)
		r := verify.NewReader(drawSource(t, bytes.NewReader(nar)), sha256.Sum256(nar), int64(len(nar)))
		got, err := readAll(t, r)
		if err != io.EOF || !bytes.Equal(got, nar) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(nar), err)
		}
	})
}

// corrupt draws bytes that differ from nar.
func corrupt(t *rapid.T, nar []byte) []byte {
	at := func(what string) int { return rapid.IntRange(0, len(nar)-1).Draw(t, what) }
	bad := bytes.Clone(nar)
	switch rapid.IntRange(0, 4).Draw(t, "corruption") {
	case 0: // flip
		bad[at("byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case 1: // truncate
		bad = bad[:at("length")]
	case 2: // extend
		bad = append(bad, rapid.SliceOfN(rapid.Byte(), 1, 5000).Draw(t, "more")...)
	case 3: // splice: two places change places, or something is inserted
		i, j := at("from"), at("to")
		bad = append(append(bad[:min(i, j):min(i, j)], nar[max(i, j):]...), nar[:max(i, j)-min(i, j)]...)
	default: // something else of the same size
		for i := range bad {
			bad[i] ^= 0xa5
		}
	}
	if bytes.Equal(bad, nar) {
		t.Skip("nothing changed")
	}
	return bad
}

func TestOtherBytesNeverEndWellNorPassWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nar := drawNar(t)
		if len(nar) == 0 {
			nar = []byte{0}
		}
		bad := corrupt(t, nar)
		r := verify.NewReader(drawSource(t, bytes.NewReader(bad)), sha256.Sum256(nar), int64(len(nar)))
		got, err := readAll(t, r)
		var mismatch *verify.MismatchError
		if !errors.As(err, &mismatch) {
			t.Fatalf("ends with %v", err)
		}
		if !bytes.HasPrefix(bad, got) || len(got) > max(0, min(len(bad), len(nar))-1) {
			t.Fatalf("%d bytes of %d signed and %d sent were passed on", len(got), len(nar), len(bad))
		}
		if mismatch.WantSize != int64(len(nar)) || mismatch.WantHash != sha256.Sum256(nar) || mismatch.Error() == "" {
			t.Fatalf("the error says %+v", mismatch)
		}
	})
}

func TestASourcesErrorPassesThroughAndSticks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nar := drawNar(t)
		upTo := rapid.IntRange(0, len(nar)).Draw(t, "breaks at")
		src := io.MultiReader(bytes.NewReader(nar[:upTo]), iotest.ErrReader(errSource))
		got, err := readAll(t, verify.NewReader(drawSource(t, src), sha256.Sum256(nar), int64(len(nar))))
		if err != errSource {
			t.Fatalf("ends with %v", err)
		}
		if !bytes.HasPrefix(nar, got) || len(got) > max(0, upTo-1) {
			t.Fatalf("%d of the %d bytes that came were passed on", len(got), upTo)
		}
	})
}

func TestASourceThatNeverMovesIsGivenUp(t *testing.T) {
	stuck := readerFunc(func([]byte) (int, error) { return 0, nil })
	if _, err := verify.NewReader(stuck, verify.Hash{}, 10).Read(make([]byte, 1)); err != io.ErrNoProgress {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAReadOfNothingAsksTheSourceForNothing(t *testing.T) {
	src := readerFunc(func([]byte) (int, error) { t.Error("asked"); return 0, errSource })
	if n, err := verify.NewReader(src, verify.Hash{}, 10).Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
}

func TestAnEndlessSourceIsCutAtTheSignedSize(t *testing.T) {
	const size = 1 << 20
	taken := 0
	src := readerFunc(func(p []byte) (int, error) { taken += len(p); return len(p), nil })
	n, err := io.Copy(io.Discard, verify.NewReader(src, verify.Hash{}, size))
	var mismatch *verify.MismatchError
	if !errors.As(err, &mismatch) || n >= size || taken > size+100_000 {
		t.Errorf("%d bytes passed, %d taken, %v", n, taken, err)
	}
}

func TestSizesThatNoNarHas(t *testing.T) {
	empty := verify.Hash(sha256.Sum256(nil))
	for _, c := range []struct {
		what string
		src  string
		want verify.Hash
		size int64
		ok   bool
	}{
		{"nothing signed, nothing sent", "", empty, 0, true},
		{"nothing signed, another hash", "", verify.Hash{}, 0, false},
		{"nothing signed, a byte sent", "x", empty, 0, false},
		{"a negative size, nothing sent", "", empty, -1, false},
		{"a negative size, a byte sent", "x", empty, -1, false},
		{"a huge size costs no memory", "x", empty, 1 << 62, false},
	} {
		got, err := io.ReadAll(verify.NewReader(bytes.NewReader([]byte(c.src)), c.want, c.size))
		var mismatch *verify.MismatchError
		if len(got) != 0 || c.ok != (err == nil) || !c.ok && !errors.As(err, &mismatch) {
			t.Errorf("%s: %q, %v", c.what, got, err)
		}
		ch := verify.NewChecker(c.want, c.size)
		ch.Write([]byte(c.src))
		if err := ch.Finish(); c.ok != (err == nil) {
			t.Errorf("%s: checker says %v", c.what, err)
		}
	}
}

func TestACheckerTakesTheSignedBytesInAnyPiecesAndNoOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nar := drawNar(t)
		bytesSent, want := nar, true
		if len(nar) > 0 && rapid.Bool().Draw(t, "corrupt") {
			bytesSent, want = corrupt(t, nar), false
		}
		c := verify.NewChecker(sha256.Sum256(nar), int64(len(nar)))
		var refused error
		for rest := bytesSent; len(rest) > 0 && refused == nil; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "piece")
			var wrote int
			wrote, refused = c.Write(rest[:n])
			if refused == nil && wrote != n || refused != nil && wrote != 0 {
				t.Fatalf("wrote %d of %d, %v", wrote, n, refused)
			}
			rest = rest[n:]
			if n == 0 {
				_, refused = c.Write(rest)
				rest = nil
			}
		}
		if c.Written() > int64(len(nar)) {
			t.Fatalf("%d bytes accepted of %d signed", c.Written(), len(nar))
		}
		err := c.Finish()
		if (err == nil) != want || refused != nil && err != refused || c.Finish() != err {
			t.Fatalf("right bytes: %v, write says %v, finish says %v", want, refused, err)
		}
		if err != nil {
			if _, again := c.Write([]byte{1}); again != err {
				t.Fatalf("%v did not stick: %v", err, again)
			}
		}
	})
}
