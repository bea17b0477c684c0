package substituter

import (
	"bytes"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fullDisk is a file system that takes so many bytes and no more.
type fullDisk struct{ left atomic.Int64 }

type faultyFile struct {
	spoolFile
	disk *fullDisk
}

func (d *fullDisk) create(dir string) (spoolFile, error) {
	f, err := createSpoolFile(dir)
	return faultyFile{f, d}, err
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if f.disk.left.Add(-int64(len(p))) < 0 {
		f.disk.left.Add(int64(len(p)))
		return 0, syscall.ENOSPC
	}
	return f.spoolFile.WriteAt(p, off)
}

func TestAFullDiskCostsNixNothing(t *testing.T) {
	for name, room := range map[string]int64{"from the first byte": 0, "in the middle": 5 * mib, "at the last byte": 8*mib - 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 8*mib)
				w.upstream("x", honest)
				s := w.start()
				disk := &fullDisk{}
				disk.left.Store(room)
				s.flights.create = disk.create
				s.flights.room.memory.Store(0)
				w.wantNAR(get(s, w.narURL()))
				if rec := get(s, w.narURL(), "Range", "bytes=7000000-"); rec == nil || rec.Code != http.StatusPartialContent || !bytes.Equal(rec.Body.Bytes(), w.nar[7_000_000:]) {
					t.Error("a resumed answer is wrong")
				}
			})
		})
	}
}

func TestANARLargerThanTheCacheMayBeIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*mib)
		w.upstream("breaks", behaviour{corrupt: -1, stopAt: 3 * mib})
		second := w.upstream("goes on", honest)
		s := w.start()
		s.flights.room.memory.Store(0)
		s.flights.room.disk.Store(5 * mib)
		w.wantNAR(get(s, w.narURL()))
		if len(second.asked()) == 0 {
			t.Error("the second cache was not asked")
		}
		if left, _ := filepath.Glob(filepath.Join(w.dir, "spool", "*")); len(left) != 0 || s.flights.room.disk.Load() != 5*mib {
			t.Errorf("%v left in the spool, room %d", left, s.flights.room.disk.Load())
		}
	})
}

func TestWithoutRoomWrongBytesStillNeverEndCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*mib)
		w.upstream("lies", behaviour{corrupt: 5 * mib})
		s := w.start()
		s.flights.room.memory.Store(0)
		s.flights.room.disk.Store(0)
		if rec := get(s, w.narURL()); rec != nil {
			t.Errorf("status %d, %d bytes", rec.Code, rec.Body.Len())
		}
	})
}

func TestWithoutRoomAndWithoutACacheItIsAMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*mib)
		up := w.upstream("x", honest)
		s := w.start()
		w.knows(s)
		up.become(behaviour{refuse: true})
		s.flights.room.memory.Store(0)
		s.flights.room.disk.Store(0)
		if rec := get(s, w.narURL()); rec == nil || rec.Code != http.StatusNotFound {
			t.Error("not a plain miss")
		}
	})
}

// TestLandedNARsMakeRoomForNewOnes: what was used last stays longest.
func TestLandedNARsMakeRoomForNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 6*mib)
		second := w.add("b", 5*mib)
		third := w.add("c", 5*mib)
		w.upstream("x", honest)
		s := w.start()
		s.flights.room.memory.Store(0)
		s.flights.room.disk.Store(12 * mib)
		fetch := func(h string) {
			t.Helper()
			time.Sleep(time.Second)
			if rec := get(s, h); rec == nil || rec.Code != http.StatusOK {
				t.Fatal(h)
			}
		}
		url := func(o *otherPath) string {
			return "nar/" + o.info.StorePath.Hash().String() + "-" + o.info.NarHash.Base32() + ".nar"
		}
		a, b, c := w.narURL(), url(w.more[second.Hash()]), url(w.more[third.Hash()])
		fetch(a)
		fetch(b)
		fetch(a) // used again: b is now the older one
		fetch(c)
		if !s.flights.has(w.info.NarHash) || s.flights.has(w.more[second.Hash()].info.NarHash) || !s.flights.has(w.more[third.Hash()].info.NarHash) {
			t.Error("not the oldest made room")
		}
	})
}
