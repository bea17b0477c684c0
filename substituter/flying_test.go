package substituter

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFlightsTellWhatIsOnTheWayAndFromWhom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4*mib)
		up := w.upstream("slow", behaviour{corrupt: -1, stopAt: mib, stall: true})
		s := w.start()
		answered := make(chan struct{})
		go func() {
			get(s, w.narURL())
			close(answered)
		}()
		time.Sleep(time.Second)
		want := []FlightStatus{{Path: w.path.Base(), Got: mib, Size: 4 * mib, From: []string{"http://slow"}}}
		if diff := cmp.Diff(want, s.Flights()); diff != "" {
			t.Error(diff)
		}
		up.become(honest)
		<-answered
		if left := s.Flights(); len(left) > 0 {
			t.Errorf("landed, yet on the way: %+v", left)
		}
	})
}
