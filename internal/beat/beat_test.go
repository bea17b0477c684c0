package beat_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/internal/beat"
)

func TestWhateverBeganWhenEndsAtTheSameInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(beat.Next())
		first := time.Now()
		for _, later := range []time.Duration{1, 300 * time.Millisecond, time.Second, 2700 * time.Millisecond} {
			time.Sleep(later)
			next := beat.Next()
			if next <= 0 || next > beat.Every {
				t.Errorf("the next beat in %v", next)
			}
			if time.Sleep(next); time.Since(first)%beat.Every != 0 {
				t.Errorf("%v after a beat there is another one", time.Since(first))
			}
		}
	})
}
