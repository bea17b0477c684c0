package substituter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// errNoSource: nobody who has the NAR could be made to send it.
var errNoSource = errors.New("no source could serve the NAR")

// errLocal: it is this machine's own trouble, no source's.
var errLocal = errors.New("this machine could not keep the NAR")

const (
	// tailHeld is how many of the last bytes wait for the verdict on the whole, so that no reader can take
	// a wrong NAR for a finished one.
	tailHeld = 4 << 10
	// pollEvery is how often a flight looks for silence and for new sources, pollSwarm where chunks are judged,
	// pollIdle where a neighbour fetches and there is nothing to ask it for.
	pollEvery = 50 * time.Millisecond
	pollSwarm = 25 * time.Millisecond
	pollIdle  = 250 * time.Millisecond
	// newsEvery bounds how often it does so for what neighbours tell; with many neighbours it is longer.
	newsEvery = 10 * time.Millisecond
	// hashStep is how much is read back from a spool file at once to be hashed.
	hashStep = 1 << 20
	// progressStep is how many bytes count as a sign of life: who dribbles is as good as silent.
	progressStep = 4 << 10
)

// flight fetches one NAR, once, for however many readers. Its run goroutine decides, its legs receive
// ranges, its hasher follows the contiguous front, its readers wait.
type flight struct {
	hash  verify.StoreHash
	v     *verify.Verified
	all   *flights
	began time.Time

	wireGot atomic.Int64 // bytes from upstreams, as sent

	mu       sync.Mutex    // guards all below
	changed  chan struct{} // closed and replaced at every change
	spool    *spool
	claimed  spans // bytes that a leg has received; each is taken from one source only
	written  spans // those that are in the spool
	prefix   int64 // bytes from 0 on that came from upstreams and may stream unverified
	hold     bool  // nothing streams until all is verified: the NAR is small, or a try of it was wrong
	served   int64 // unverified bytes shown to some reader
	epoch    int   // number of mismatches; readers of an older epoch may hold wrong bytes
	poisoned bool  // they do
	legs     map[*leg]bool
	parts    []part    // who sent what, in order of arrival
	peersGot int64     // bytes from peers
	progress time.Time // of the last progressStep bytes
	marked   int64     // bytes since then
	passed   int64     // bytes, as sent, that a leg has passed by since then
	writing  int       // legs that are putting bytes into the spool
	done     bool
	err      error
	readers  int
	told     bool          // neighbours heard of it
	asked    bool          // Nix asked for it; else it is only fetched ahead
	wanted   time.Time     // since when its present readers, or the last past ones, wait; its beginning if nobody asked
	spent    time.Duration // what the first of them had waited before
	idle     time.Time     // since when there are no readers
	trash    []*spool      // of failed tries; a reader may still be writing from one
	swarm    swarm
}

// part is a run of bytes from one source.
type part struct {
	src source
	span
}

// leg is one source at work on one range. All but src, started and cancel is guarded by flight.mu.
type leg struct {
	src      source
	started  time.Time
	cancel   context.CancelFunc
	pos, end int64     // what it still has to bring; end shrinks when another source takes over the rest
	got      int64     // bytes it contributed
	lastByte time.Time // of the last progressStep bytes; zero: none yet
	marked   int64     // bytes since then

	body   io.ReadCloser // from when its source answered on
	passes bool          // until its first byte: its source may have to send again what is before pos
	passed int64         // bytes of that, as sent, at the last progressStep of them

	before int64 // bytes that its neighbour had brought when it began
	seen   sight // of a central cache's, when its pace was last looked at

	dismissed bool // it was ended because its bytes came from elsewhere
	lags      bool // its source is a laggard, see laggards
	slow      bool // another source was called in because it is so slow
	double    bool // it brings the same as another leg; the first to come counts
	doubled   bool // there is such a one
}

// silent is how long the leg has not brought bytes worth the name.
func (l *leg) silent(now time.Time) time.Duration {
	if l.lastByte.IsZero() {
		return now.Sub(l.started)
	}
	return now.Sub(l.lastByte)
}

// wired adds up bytes from upstreams, as sent.
func (f *flight) wired(n int64) {
	f.wireGot.Add(n)
	f.all.stats.Wire.Add(n)
	f.all.farGate.wired(n)
	f.all.uplink.wired(n, f.v.Scope() == verify.ScopePublic)
}

// broadcast wakes all who wait; mu is held.
func (f *flight) broadcast() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// servable returns how far readers may read now; mu is held.
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
	f      *flight
	epoch  int
	direct *direct // once this machine could not keep the NAR
}

// await is flight.await, which it goes on without where this machine cannot keep the NAR.
func (r *reader) await(ctx context.Context, off int64) (end int64, err error) {
	end, err = r.f.await(ctx, r.epoch, off)
	if errors.Is(err, errLocal) {
		r.direct = newDirect(r.f.all, r.f.v)
		return r.f.v.NarSize(), nil
	}
	return end, err
}

// close ends the reader's use of the flight.
func (r *reader) close() {
	r.f.all.leave(r.f)
	if r.direct != nil {
		r.direct.close()
	}
}

// Size implements binarycache.Content.
func (r *reader) Size() int64 { return r.f.v.NarSize() }

// WriteRange implements binarycache.Content; it waits for bytes that are still on their way.
func (r *reader) WriteRange(ctx context.Context, w io.Writer, off, length int64) (written int64, err error) {
	for written < length {
		if r.direct != nil {
			n, err := r.direct.WriteRange(ctx, w, off+written, length-written)
			return written + n, err
		}
		end, err := r.await(ctx, off+written)
		if err != nil {
			return written, err
		}
		if r.direct != nil {
			continue
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
	defer f.all.air.began()()
	p := newPlan(f)
	err := f.fetch(ctx, p)
	f.mu.Lock()
	f.err, f.done = err, true
	parts := f.parts
	f.idle = f.all.now()
	f.broadcast()
	if err != nil {
		f.untell()
	}
	if errors.Is(err, errLocal) {
		f.spool.drop()
	}
	f.mu.Unlock()
	if err == nil && p.claim.stage != StageNone {
		p.enter(StageLanded)
	}
	p.weigh(true)
	p.close()
	f.all.landed(f, parts, err, time.Since(start))
}

func (f *flight) fetch(ctx context.Context, p *plan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer p.ask.wg.Wait()
	defer cancel()
	for {
		err := f.fill(ctx, p)
		var wrong *verify.MismatchError
		switch {
		case err == nil:
			return p.acquit()
		case !errors.As(err, &wrong):
			return err
		case p.mayRepair():
			p.wrong = err // chunk by chunk, if somebody has a chain
			f.mu.Lock()
			f.hold = true
			f.mu.Unlock()
			continue
		}
		p.wrong = nil
		f.all.stats.Rejected.Add(1)
		if err := f.restart(p, err); err != nil {
			return err
		}
	}
}

// legEnd is how a leg went.
type legEnd struct {
	leg *leg
	err error
}

// fill runs legs until the whole is judged, and returns the verdict.
func (f *flight) fill(ctx context.Context, p *plan) error {
	working, cancel := context.WithCancel(ctx)
	results, verdict := make(chan legEnd, maxLegs), make(chan error, 1)
	running := 0
	defer func() {
		cancel()
		p.dropLegs()
	}()
	start := func(l *leg) {
		var lctx context.Context
		lctx, l.cancel = context.WithCancel(working)
		running++
		f.all.wg.Go(func() { results <- legEnd{l, f.runLeg(lctx, l)} })
	}
	var judging sync.WaitGroup
	defer judging.Wait()
	defer cancel()
	judging.Go(func() { verdict <- f.follow(working, p.wrong) })
	for {
		news := p.news() // from now on, so that what is told while sources are chosen counts
		if err := p.repair(ctx); err != nil {
			return err
		}
		if err := p.advance(ctx, start, running); err != nil {
			return err
		}
		wait, listen := p.next(running)
		if news == nil {
			news = p.news() // it has only now made a claim
		}
		if !listen {
			news = nil
		}
		select {
		case err := <-verdict:
			return err
		case e := <-results:
			running--
			e.leg.cancel()
			f.mu.Lock()
			delete(f.legs, e.leg)
			f.mu.Unlock()
			if errors.Is(e.err, errLocal) {
				return e.err
			}
			p.ended(e.leg, e.err)
		case <-time.After(wait):
		case <-news:
			p.heard = time.Now()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waited is how long Nix has been waiting, or the flight has been under way if nobody asked for it.
func (f *flight) waited() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.wanted)
}

var legBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// runLeg copies a range from one source to the spool.
func (f *flight) runLeg(ctx context.Context, l *leg) error {
	f.mu.Lock()
	from, to := l.pos, l.end
	f.mu.Unlock()
	body, err := l.src.open(ctx, f, from, to)
	if err != nil {
		return err
	}
	defer body.Close()
	f.mu.Lock()
	l.body, l.passes = body, from > 0
	f.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { body.Close() })
	defer stop()
	buf := legBuffers.Get().(*[]byte)
	defer legBuffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if done, werr := f.keep(l, (*buf)[:n]); done || werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
}

// keep stores what of p, a leg's next bytes, nobody else brought before. done says that the leg's range
// is complete.
func (f *flight) keep(l *leg, p []byte) (done bool, err error) {
	for len(p) > 0 {
		f.mu.Lock()
		if !f.legs[l] {
			break // nobody waits for it any more
		}
		l.passes = false
		if l.marked += int64(len(p)); l.marked >= progressStep {
			l.lastByte, l.marked = time.Now(), 0
		}
		g, ok := f.claimed.gap(l.pos, min(l.pos+int64(len(p)), l.end))
		if !ok {
			f.vouch(l, p[:min(int64(len(p)), l.end-l.pos)])
			l.pos = min(l.pos+int64(len(p)), l.end)
			break
		}
		f.vouch(l, p[:g.from-l.pos])
		p = p[g.from-l.pos:]
		l.pos = g.to
		f.claimed = f.claimed.add(g.from, g.to)
		s := f.spool
		f.writing++
		f.mu.Unlock()

		err := f.all.write(s, p[:g.len()], g.from)

		f.mu.Lock()
		if f.writing--; f.writing == 0 {
			f.broadcast()
		}
		if err != nil {
			f.mu.Unlock()
			return false, fmt.Errorf("%w: %w", errLocal, err)
		}
		f.arrived(l, g)
		p = p[g.len():]
		if l.pos >= l.end {
			break
		}
		f.mu.Unlock()
		if len(p) == 0 {
			return false, nil
		}
	}
	defer f.mu.Unlock()
	_, more := f.claimed.gap(l.pos, l.end)
	return !more || !f.legs[l], nil
}

// vouch lets bytes that a peer brought stream once an upstream sent the same; l is at them, mu is held.
func (f *flight) vouch(l *leg, p []byte) {
	to := l.pos + int64(len(p))
	if _, missing := f.written.gap(l.pos, to); missing || len(p) == 0 || !l.src.streams() || f.prefix != l.pos {
		return
	}
	have, err := f.spool.view(l.pos, int64(len(p)), new([]byte))
	if err == nil && bytes.Equal(have, p) {
		f.prefix = to
		f.broadcast()
	}
}

// arrived takes note of bytes in the spool; mu is held.
func (f *flight) arrived(l *leg, g span) {
	f.written = f.written.add(g.from, g.to)
	if f.marked += g.len(); f.marked >= progressStep {
		f.progress, f.marked, f.passed = time.Now(), 0, 0
	}
	l.got += g.len()
	f.all.received(l.src, g.len())
	if l.src.fromPeer() {
		f.peersGot += g.len()
	}
	if l.src.streams() && f.prefix == g.from {
		f.prefix = g.to
	}
	defer f.broadcast()
	for k := len(f.parts) - 1; k >= max(0, len(f.parts)-2*maxLegs); k-- {
		if f.parts[k].to == g.from && sameSource(f.parts[k].src, l.src) {
			f.parts[k].to = g.to
			return
		}
	}
	f.parts = append(f.parts, part{l.src, g})
}

// sameSource tells whether both are the same in the same role: who relays what it has not verified is
// judged otherwise than who has it all.
func sameSource(a, b source) bool {
	_, x := a.(partialSource)
	_, y := b.(partialSource)
	return x == y && a.name() == b.name()
}

// restart begins the NAR anew after its bytes proved wrong, keeping them as evidence.
func (f *flight) restart(p *plan, cause error) error {
	f.all.mu.Lock()
	fresh, err := f.all.newSpool(f.v.NarSize())
	f.all.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	f.mu.Lock()
	bad := failedTry{f.spool, f.parts, cause}
	f.spool, f.parts, f.claimed, f.written, f.prefix, f.hold = fresh, nil, nil, nil, 0, true
	f.epoch++
	f.progress = time.Now()
	f.broadcast()
	f.mu.Unlock()
	return p.blame(bad)
}
