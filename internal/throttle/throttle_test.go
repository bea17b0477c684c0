package throttle

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestARateHoldsForAllTogetherWithinFivePercent(t *testing.T) {
	for _, perSecond := range []int64{64 << 10, 1_250_000, 12_500_000, 125_000_000} {
		synctest.Test(t, func(t *testing.T) {
			l := New(perSecond)
			start := time.Now()
			var wg sync.WaitGroup
			const flows = 7
			each := int(perSecond) * 3 / flows
			for range flows {
				wg.Go(func() {
					w := l.Writer(t.Context(), io.Discard)
					for left := each; left > 0; left -= 100_000 {
						if _, err := w.Write(make([]byte, min(left, 100_000))); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			got := float64(flows*each) / time.Since(start).Seconds()
			if r := got / float64(perSecond); r < 0.95 || r > 1.05 {
				t.Errorf("%d bytes/s asked, %.0f got", perSecond, got)
			}
		})
	}
}

func TestNoLimitCostsNothing(t *testing.T) {
	var l *Throttle = New(0)
	var w bytes.Buffer
	if l.Writer(t.Context(), &w) != io.Writer(&w) || len(l.Piece(make([]byte, 1<<20))) != 1<<20 || l.Wait(t.Context(), 1<<30) != nil {
		t.Error("an unlimited flow is touched")
	}
}

func TestAThrottledWaitEndsWithItsReader(t *testing.T) {
	l := New(1000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Writer(ctx, io.Discard).Write(make([]byte, 1<<20)); err == nil {
		t.Error("it goes on")
	}
}

// TestTwoWaysShareOneRate: what peers and central caches send is held to the rate together.
func TestTwoWaysShareOneRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond = 1_000_000
		l := New(perSecond)
		start := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for got := 0; got < perSecond; {
					n := len(l.Piece(make([]byte, 64<<10)))
					if err := l.Wait(t.Context(), n); err != nil {
						t.Error(err)
					}
					got += n
				}
			})
		}
		wg.Wait()
		if took := time.Since(start).Seconds(); took < 1.9 || took > 2.1 {
			t.Errorf("two seconds' worth in %.2f s", took)
		}
	})
}
