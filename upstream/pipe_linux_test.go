package upstream

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestGosPollerDoesNotWatchThePipesToXZ(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{r, w} {
		if err := f.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) { // only what is watched can have one
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
}
