package substituter

import (
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// sparesMost is how many bytes of files are kept at a time; they take room like NARs.
	sparesMost = 2 << 30
	// spareAge is how long after its creation a file is used again. Linux writes to the disk what was changed
	// 30 s ago; of a file removed before that nothing is ever written.
	spareAge = 20 * time.Second
)

// spares are the files of spools that ended, for the next ones: pages that the page cache already has are
// several times as quick to write as new ones, most of all in virtual machines. What is in them was public,
// and nothing beyond what was written since is ever read.
type spares struct {
	now func() time.Time

	mu    sync.Mutex
	files []spare
	bytes int64 // of all files
}

// spare is one file and the room that it holds, in bytes.
type spare struct {
	file spoolFile
	size int64
	born time.Time
}

// put takes a file over, with its room; false if it is of no use.
func (p *spares) put(s spare) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.size > sparesMost-p.bytes || p.now().Sub(s.born) > spareAge {
		return false
	}
	p.files = append(p.files, s)
	p.bytes += s.size
	return true
}

// get returns the file that suits size bytes best, cut to them if it is longer. Its room is the caller's.
func (p *spares) get(size int64) (s spare, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for i, f := range p.files {
		if best < 0 {
			best = i
			continue
		}
		was := p.files[best].size
		if f.size >= size && (was < size || f.size < was) || f.size < size && f.size > was {
			best = i
		}
	}
	if best < 0 {
		return spare{}, false
	}
	return p.remove(best), true
}

// remove takes one out; mu is held.
func (p *spares) remove(i int) spare {
	s := p.files[i]
	p.files = slices.Delete(p.files, i, i+1)
	p.bytes -= s.size
	return s
}

// drop removes files that are older than age, or with most > 0 as many of the oldest, and gives their room
// back. It returns how many it removed.
func (p *spares) drop(age time.Duration, most int, left *room) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 0; i < len(p.files) && (most == 0 || n < most); {
		if p.now().Sub(p.files[i].born) <= age {
			i++
			continue
		}
		p.remove(i).discard(left)
		n++
	}
	return n
}

// discard removes a file and gives its room back.
func (s spare) discard(left *room) {
	os.Remove(s.file.Name())
	s.file.Close()
	left.disk.Add(s.size)
}
