package substituter

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// spoolFiles lists what is in the world's spool directory.
func (w *world) spoolFiles() []string {
	left, err := filepath.Glob(filepath.Join(w.dir, "spool", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return left
}

// TestASpoolFileIsUsedAgain: NARs that Nix has read give their files to the next ones, which are right to the
// last byte and in files of just their size.
func TestASpoolFileIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8*mib)
		w.peer("has all", honest)
		s := w.start()
		s.flights.room.memory.Store(0)
		room := s.flights.room.disk.Load()
		made := 0
		s.flights.create = func(dir string) (spoolFile, error) { made++; return createSpoolFile(dir) }
		for i, size := range []int{8 * mib, 5*mib + 8, 7*mib + 16, 7 * mib} {
			w.path, w.nar, w.info = w.makePath(fmt.Sprint(i), size)
			w.wantNAR(get(s, w.narURL()))
			files := w.spoolFiles()
			if len(files) != 1 {
				t.Fatalf("%v in the spool", files)
			}
			if st, err := os.Stat(files[0]); err != nil || st.Size() != int64(size) {
				t.Errorf("a NAR of %d bytes is in a file of %d", size, st.Size())
			}
			if left := s.flights.room.disk.Load(); left != room-int64(size) {
				t.Errorf("%d of %d bytes of room are left with a NAR of %d", left, room, size)
			}
		}
		if made != 1 {
			t.Errorf("%d files were made", made)
		}
		s.flights.clear()
		time.Sleep(spareAge + 2*sweepEvery)
		synctest.Wait()
		if files := w.spoolFiles(); len(files) != 0 || s.flights.room.disk.Load() != room {
			t.Errorf("%v are left, and room for %d of %d", files, s.flights.room.disk.Load(), room)
		}
	})
}

// TestFilesOfPrivateNARsAndOfNARsStillNeededAreLeftAlone: private bytes never wait in a file for its next use,
// and what the central cache sent stays for neighbours and for Nix until it lingered.
func TestFilesOfPrivateNARsAndOfNARsStillNeededAreLeftAlone(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"private":                func(w *world) { w.keys = w.privateKeys; w.peer("has all", honest) },
		"from the central cache": func(w *world) { w.upstream("cache", honest) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 8*mib)
				prepare(w)
				s := w.start()
				s.flights.room.memory.Store(0)
				w.wantNAR(get(s, w.narURL()))
				before := w.spoolFiles()
				w.path, w.nar, w.info = w.makePath("b", 8*mib)
				w.wantNAR(get(s, w.narURL()))
				if after := w.spoolFiles(); len(before) != 1 || len(after) != 2 {
					t.Errorf("files in the spool: %v, then %v", before, after)
				}
				s.flights.clear()
				if n := len(s.flights.spares.files); name == "private" && n != 0 {
					t.Errorf("%d spare files of private NARs", n)
				}
			})
		})
	}
}

func TestWhatPeersRelayedIsKept(t *testing.T) {
	whole := peerSource{}
	for _, c := range []struct {
		name string
		from []source
		want bool
	}{
		{"one has the whole", []source{whole}, true},
		{"two have", []source{whole, whole}, true},
		{"one is fetching it", []source{whole, partialSource{}}, false},
		{"a cache brought some", []source{whole, upstreamSource{}}, false},
	} {
		f := &flight{}
		for _, src := range c.from {
			f.parts = append(f.parts, part{src: src})
		}
		if f.fromWhole() != c.want {
			t.Error(c.name)
		}
	}
}

// TestSpareFilesKeepTheirBounds: whatever is put and taken, no more than the bound is kept, nothing old is
// given out for long, and no room is lost.
func TestSpareFilesKeepTheirBounds(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		p := spares{now: func() time.Time { return now }}
		const total = 8 << 30
		var left room
		left.disk.Store(total)
		var used []*spool
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				size := rapid.Int64Range(memorySpool+1, 1<<30).Draw(t, "size")
				s, err := newSpool(func() (spoolFile, error) { return createSpoolFile(dir) }, size, &left, &p)
				if err != nil {
					continue // no room
				}
				if now.Sub(s.born) > spareAge {
					t.Fatal("an old file")
				}
				s.spares = &p
				used = append(used, s)
			case 2:
				if len(used) > 0 {
					used[0].close()
					used = used[1:]
				}
			case 3:
				now = now.Add(spareAge / 3)
				p.drop(spareAge, 0, &left)
			}
			sum := left.disk.Load() + p.bytes
			for _, s := range used {
				sum += s.size
			}
			if p.bytes > sparesMost || sum != total {
				t.Fatalf("%d spare bytes; %d of room are lost", p.bytes, total-sum)
			}
		}
		for _, s := range used {
			s.close()
		}
		p.drop(-1, 0, &left)
		if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 0 || left.disk.Load() != total {
			t.Fatalf("left: %v, room %d", files, left.disk.Load())
		}
	})
}

// BenchmarkNARFromAPeer takes a NAR of 256 MiB from a peer in memory, through spool and check, to nowhere; the
// spool files are used again, but for the first.
func BenchmarkNARFromAPeer(b *testing.B) {
	const size = 256 << 20
	w := newWorldOf(b, size)
	w.peer("has all", honest)
	s := w.start()
	url := w.narURL()
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		s.flights.clear()
		sink := &countingWriter{header: http.Header{}}
		s.Handler(nil).ServeHTTP(sink, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:6490/"+url, nil))
		if sink.n != size {
			b.Fatalf("%d bytes", sink.n)
		}
	}
}

// countingWriter is an answer that goes nowhere.
type countingWriter struct {
	header http.Header
	n      int64
}

func (w *countingWriter) Header() http.Header         { return w.header }
func (w *countingWriter) WriteHeader(int)             {}
func (w *countingWriter) Write(p []byte) (int, error) { w.n += int64(len(p)); return len(p), nil }
