package substituter

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// countedFile counts the bytes that are read back.
type countedFile struct {
	spoolFile
	read *atomic.Int64
}

func (f countedFile) ReadAt(p []byte, off int64) (int, error) {
	f.read.Add(int64(len(p)))
	return f.spoolFile.ReadAt(p, off)
}

func TestWhatALegHasInHandIsNotReadBackToBeHashed(t *testing.T) {
	for name, source := range map[string]func(*world, behaviour){
		"peer":     func(w *world, b behaviour) { w.peer("x", b) },
		"upstream": func(w *world, b behaviour) { w.upstream("x", b) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 8*mib)
				source(w, behaviour{corrupt: -1, perRead: 5 * time.Millisecond})
				if name == "peer" { // whose narinfo is the cache's
					w.upstream("y", behaviour{corrupt: -1, refuse: true})
				}
				s := w.start()
				var read atomic.Int64
				s.flights.create = func(dir string) (spoolFile, error) {
					f, err := createSpoolFile(dir)
					return countedFile{f, &read}, err
				}
				w.wantNAR(get(s, w.narURL()))
				if read.Load() != 8*mib { // once, for Nix
					t.Errorf("%d bytes were read from the spool, of a NAR of %d", read.Load(), 8*mib)
				}
			})
		})
	}
}

// TestPiecesInHandAreWhatIsInTheSpool: several legs write where they like, the checker comes when it likes; it gets each
// byte once, in order, as it was written.
func TestPiecesInHandAreWhatIsInTheSpool(t *testing.T) {
	const size = 2 * mib
	rapid.Check(t, func(t *rapid.T) {
		nar := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 255).Draw(t, "nar"))}).Read(nar)
		var (
			h       inHand
			file    = make([]byte, size)
			written spans
			at      int64 // of the checker
		)
		check := func() {
			end := min(max(at, written.front()), at+hashStep)
			p, ok := h.take(end)
			got := file[at:end]
			if ok {
				got = p.b
			}
			if !bytes.Equal(got, nar[at:at+int64(len(got))]) {
				t.Fatalf("other bytes at %d, in hand: %v", at, ok)
			}
			at += int64(len(got))
			if ok {
				p.buf.release()
			}
			if h.held > inHandMost {
				t.Fatalf("%d bytes in hand", h.held)
			}
		}
		legs := make([]*legBuffer, rapid.IntRange(1, 3).Draw(t, "legs"))
		for i := range legs {
			legs[i] = newLegBuffer()
		}
		for written.front() < size {
			i := rapid.IntRange(0, 2*len(legs)).Draw(t, "who")
			if i >= len(legs) {
				check()
				continue
			}
			from := written.front()
			if rapid.IntRange(0, 4).Draw(t, "elsewhere") == 0 {
				from = rapid.Int64Range(from, size-1).Draw(t, "from")
			}
			g, ok := written.gap(from, size)
			if !ok {
				continue
			}
			legs[i] = legs[i].roomy()
			buf := legs[i]
			n := copy(buf.b[buf.used:], nar[g.from:min(g.to, g.from+rapid.Int64Range(1, legBufferSize).Draw(t, "n"))])
			p := buf.b[buf.used : buf.used+n]
			buf.used += n
			copy(file[g.from:], p)
			h.offer(g.from, p, buf)
			written = written.add(g.from, g.from+int64(n))
			if rapid.IntRange(0, 30).Draw(t, "chunks") == 0 {
				h.drop()
			}
		}
		for at < size {
			check()
		}
		if len(h.pieces) > 0 || h.held != 0 {
			t.Fatalf("%d pieces are left", len(h.pieces))
		}
	})
}
