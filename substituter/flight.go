package substituter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// errSuperseded ends a leg that another one overtook.
var errSuperseded = errors.New("another source was quicker")

// errNoSource: nobody who has the NAR could be made to send it.
var errNoSource = errors.New("no source could serve the NAR")

// errLocal: it is this machine's own trouble, no source's.
var errLocal = errors.New("this machine could not keep the NAR")

// tailHeld is how many of the last bytes wait for the verdict on the whole, so that no reader can take
// a wrong NAR for a finished one.
const tailHeld = 4 << 10

// flight fetches one NAR, once, for however many readers. Its run goroutine decides, its legs receive,
// its readers wait. Lock order: write, then mu.
type flight struct {
	hash verify.StoreHash
	v    *verify.Verified
	all  *flights
	wire func(int64) // adds up compressed bytes from upstreams

	write sync.Mutex // serialises legs; guards owner and check
	owner *leg
	check *verify.Checker

	mu       sync.Mutex    // guards all below
	changed  chan struct{} // closed and replaced at every change
	spool    *spool
	at       int64     // bytes in spool
	prefix   int64     // bytes of spool that came from an upstream and may stream unverified
	hold     bool      // after a mismatch nothing streams until all is verified
	served   int64     // unverified bytes shown to some reader
	epoch    int       // number of mismatches; readers of an older epoch may hold wrong bytes
	poisoned bool      // they do
	parts    []part    // who sent what
	progress time.Time // of the last byte
	done     bool
	err      error
	readers  int
	asked    bool      // Nix asked for it; else it is only fetched ahead
	idle     time.Time // since when there are no readers
	trash    []*spool  // of failed tries; a reader may still be writing from one
}

// part is a run of bytes from one source.
type part struct {
	src      source
	from, to int64
}

// failedTry is a NAR put together from several sources, one of which lied.
type failedTry struct {
	spool *spool
	parts []part
	err   error
}

// leg is one source at work for a flight.
type leg struct {
	src     source
	start   int64 // where its first byte belongs
	started time.Time
	cancel  context.CancelFunc
	pos     int64 // where its next byte belongs; its own goroutine's
	moved   bool  // it was the owner once; guarded by flight.write
}

// broadcast wakes all readers; mu is held.
func (f *flight) broadcast() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// servable returns how far readers of an epoch may read now; mu is held.
func (f *flight) servable() int64 {
	if f.done && f.err == nil {
		return f.v.NarSize()
	}
	if f.hold {
		return 0
	}
	return max(0, min(f.prefix, f.v.NarSize()-tailHeld))
}

// await blocks until a reader may have a byte at off and returns how far it may read.
func (f *flight) await(ctx context.Context, epoch int, off int64) (int64, error) {
	for {
		f.mu.Lock()
		if f.err != nil || f.poisoned && epoch < f.epoch {
			err := f.err
			f.mu.Unlock()
			if err == nil {
				err = errors.New("bytes already sent turned out wrong")
			}
			return 0, err
		}
		if end := f.servable(); end > off {
			f.served = max(f.served, end)
			f.mu.Unlock()
			return end, nil
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-changed:
		}
	}
}

// reader is one request's view of a flight; see binarycache.Content.
type reader struct {
	f     *flight
	epoch int
}

// Size implements binarycache.Content.
func (r *reader) Size() int64 { return r.f.v.NarSize() }

// WriteRange implements binarycache.Content; it waits for bytes that are still on their way.
func (r *reader) WriteRange(ctx context.Context, w io.Writer, off, length int64) (written int64, err error) {
	for written < length {
		end, err := r.f.await(ctx, r.epoch, off+written)
		if err != nil {
			return written, err
		}
		r.f.mu.Lock()
		s := r.f.spool
		r.f.mu.Unlock()
		n, err := s.writeTo(w, off+written, min(end-off, length)-written)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// run fetches until all is verified or nothing is left to try.
func (f *flight) run(ctx context.Context) {
	start := time.Now()
	p := newPlan(f)
	err := f.fetch(ctx, p)
	f.mu.Lock()
	f.err, f.done = err, true
	parts := f.parts
	f.idle = f.all.now()
	f.broadcast()
	f.mu.Unlock()
	p.close()
	f.all.landed(f, parts, err, time.Since(start))
}

func (f *flight) fetch(ctx context.Context, p *plan) error {
	for {
		if err := f.fill(ctx, p); err != nil {
			return err
		}
		f.write.Lock()
		err := f.check.Finish()
		f.write.Unlock()
		if err == nil {
			return p.acquit()
		}
		f.all.stats.Rejected.Add(1)
		if err := f.restart(p, err); err != nil {
			return err
		}
	}
}

// fill runs legs until every byte is there.
func (f *flight) fill(ctx context.Context, p *plan) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan legEnd, 4)
	running := map[*leg]bool{}
	defer func() {
		cancel()
		for range len(running) {
			<-results
		}
	}()
	var begun time.Time
	begin := func(src source) {
		begun = time.Now()
		lctx, lcancel := context.WithCancel(ctx)
		l := &leg{src: src, start: f.position(), started: begun, cancel: lcancel}
		l.pos = l.start
		running[l] = true
		go func() { results <- legEnd{l, f.runLeg(lctx, l)} }()
	}
	for {
		if f.position() == f.v.NarSize() {
			return nil
		}
		f.cancelOvertaken(running)
		silent := f.silence()
		if len(running) == 0 || len(running) == 1 && min(silent, time.Since(begun)) > p.patience(running) {
			if src := p.next(running); src != nil {
				begin(src)
			} else if len(running) == 0 && !p.another() {
				return p.failure()
			}
		}
		if silent > p.limit() {
			return fmt.Errorf("%w: no byte for %v", errNoSource, silent.Round(time.Millisecond))
		}
		select {
		case e := <-results:
			delete(running, e.leg)
			e.leg.cancel()
			if errors.Is(e.err, errLocal) {
				return e.err
			}
			p.ended(e.leg, e.err)
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// cancelOvertaken ends legs that are still silent where another one has gone on.
func (f *flight) cancelOvertaken(running map[*leg]bool) {
	f.write.Lock()
	defer f.write.Unlock()
	for l := range running {
		if f.owner != l && (l.moved || l.start != f.check.Written()) {
			l.cancel()
		}
	}
}

// pollEvery is how often a flight looks for silence.
const pollEvery = 25 * time.Millisecond

type legEnd struct {
	leg *leg
	err error
}

func (f *flight) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

// silence is how long no byte came.
func (f *flight) silence() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.progress)
}

var legBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// runLeg copies from one source to the spool.
func (f *flight) runLeg(ctx context.Context, l *leg) error {
	body, err := l.src.open(ctx, f, l.pos)
	if err != nil {
		return err
	}
	defer body.Close()
	stop := context.AfterFunc(ctx, func() { body.Close() })
	defer stop()
	buf := legBuffers.Get().(*[]byte)
	defer legBuffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if werr := f.append(l, (*buf)[:n]); werr != nil {
				return werr
			}
		}
		if l.pos == f.v.NarSize() {
			return nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
}

// append adds bytes of a leg if they are the next ones.
func (f *flight) append(l *leg, p []byte) error {
	f.write.Lock()
	defer f.write.Unlock()
	if f.owner != l {
		if f.check.Written() != l.pos {
			return errSuperseded
		}
		if f.owner != nil {
			f.owner.cancel()
			if l.pos > 0 {
				f.all.stats.Switched.Add(1)
			}
		}
		f.owner, l.moved = l, true
	}
	if _, err := f.check.Write(p); err != nil {
		return err
	}
	if err := f.spool.writeAt(p, l.pos); err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	from := l.pos
	l.pos += int64(len(p))
	f.all.stats.received(l.src, int64(len(p)))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.progress = l.pos, time.Now()
	if l.src.streams() && f.prefix == from {
		f.prefix = l.pos
	}
	if k := len(f.parts); k > 0 && f.parts[k-1].src == l.src {
		f.parts[k-1].to = l.pos
	} else {
		f.parts = append(f.parts, part{l.src, from, l.pos})
	}
	f.broadcast()
	return nil
}

// restart begins the NAR anew after its bytes proved wrong, keeping them as evidence.
func (f *flight) restart(p *plan, cause error) error {
	fresh, err := newSpool(f.all.dir, f.v.NarSize(), &f.all.memory)
	if err != nil {
		return err
	}
	f.write.Lock()
	f.check, f.owner = verify.NewChecker(f.v.NarHash(), f.v.NarSize()), nil
	f.write.Unlock()
	f.mu.Lock()
	bad := failedTry{f.spool, f.parts, cause}
	f.spool, f.parts, f.at, f.prefix, f.hold = fresh, nil, 0, 0, true
	f.epoch++
	f.progress = time.Now()
	f.mu.Unlock()
	return p.blame(bad)
}
