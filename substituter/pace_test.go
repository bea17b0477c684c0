package substituter

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// What a central cache takes for a NAR follows from how large it is as sent, where that is known, and from what NARs shrank to
// otherwise; but one that shrank to nearly nothing tells little of the next.
func TestACentralCachesTimeFollowsFromWhatItSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*mib)
		known := *w.info
		known.Compression, known.URL, known.FileSize = "xz", "nar/x.nar.xz", mib
		all := &flights{}
		flightOf := func(n *verify.NarInfo) *flight {
			v, err := w.keys.Verify(n)
			if err != nil {
				t.Fatal(err)
			}
			return &flight{v: v, all: all}
		}
		plain, sized := flightOf(w.info), flightOf(&known)
		wants := func(f *flight, want time.Duration) {
			t.Helper()
			if got := f.upstreamTakes(8*mib, 4*mib); got != want {
				t.Errorf("%v, want %v", got, want)
			}
		}
		wants(plain, 2*time.Second) // nothing is known
		all.pace.note(2*mib, mib, time.Second)
		wants(plain, 4*time.Second)
		wants(sized, time.Second)
		all.pace = pace{}
		all.pace.note(100*mib, mib, time.Second)
		wants(plain, 2*time.Second)
		wants(sized, time.Second)
		time.Sleep(paceLife + 1)
		wants(sized, 2*time.Second)
	})
}
