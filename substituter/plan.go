package substituter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	triesPerSource = 2                      // failures of one source in one flight
	maxMismatches  = 6                      // of one flight; after that it is given up
	roundPause     = 300 * time.Millisecond // before all sources are tried once more
	roundsMost     = 3
	// Without a byte for this long a flight that has shown Nix nothing ends: the next substituter is the
	// better chance. One that has shown bytes holds on, since an abort costs Nix the whole NAR.
	limitUnseen = 4500 * time.Millisecond
	limitSeen   = 60 * time.Second
)

// plan chooses a flight's sources. Only the flight's run goroutine uses it.
type plan struct {
	f        *flight
	failures map[string]int // by source name
	excluded map[string]bool
	tries    []failedTry
	lone     bool // after a mismatch of several sources: one source alone, a fresh one first
	round    int
	resume   time.Time // start of the next round
	last     error
}

func newPlan(f *flight) *plan {
	return &plan{f: f, failures: map[string]int{}, excluded: map[string]bool{}}
}

// candidates returns the sources in the order in which they should be tried.
func (p *plan) candidates() []source {
	var list []source
	for _, peer := range p.f.all.finder.peers.Holders(p.f.hash.Digest(), p.f.v.NarSize()) {
		list = append(list, peerSource{peer})
	}
	var last []source
	for _, up := range p.f.all.finder.upstreams {
		if s := (upstreamSource{up, p.f.all}); s.distrusted() {
			last = append(last, s)
		} else {
			list = append(list, s)
		}
	}
	return append(list, last...)
}

// next returns the best source that is not at work already, nil if there is none.
func (p *plan) next(running map[*leg]bool) source {
	if time.Now().Before(p.resume) {
		return nil
	}
	busy := map[string]bool{}
	for l := range running {
		busy[l.src.name()] = true
	}
	var best source
	least := triesPerSource
	for _, s := range p.candidates() {
		name := s.name()
		failed := p.failures[name]
		if p.lone && p.contributed(name) {
			failed++ // a source that is above suspicion first
		}
		if !busy[name] && !p.excluded[name] && failed < least {
			best, least = s, failed
		}
	}
	return best
}

func (p *plan) contributed(name string) bool {
	for _, t := range p.tries {
		for _, part := range t.parts {
			if part.src.name() == name {
				return true
			}
		}
	}
	return false
}

// another starts a new round of tries after a pause; false if there were enough.
func (p *plan) another() bool {
	if time.Now().Before(p.resume) {
		return true
	}
	if p.round++; p.round > roundsMost || p.allAbsent() {
		return false
	}
	clear(p.failures)
	p.resume = time.Now().Add(roundPause)
	return true
}

// allAbsent tells whether nobody is left who could have it.
func (p *plan) allAbsent() bool {
	for _, s := range p.candidates() {
		if !p.excluded[s.name()] && p.failures[s.name()] < absentWeight {
			return false
		}
	}
	return true
}

// absentWeight is what a definite no counts for: more than all other failures.
const absentWeight = 100

// patience is how long the running source may be silent.
func (p *plan) patience(running map[*leg]bool) time.Duration {
	for l := range running {
		return l.src.patience()
	}
	return 0
}

// limit is how long the flight may go without a byte.
func (p *plan) limit() time.Duration {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.served > 0 {
		return limitSeen
	}
	return limitUnseen
}

// ended takes note of how a leg went.
func (p *plan) ended(l *leg, err error) {
	if err == nil {
		return
	}
	name := l.src.name()
	switch {
	case errors.Is(err, ErrAbsent):
		p.failures[name] += absentWeight
	case errors.Is(err, errSuperseded), errors.Is(err, context.Canceled):
		if l.moved || time.Since(l.started) > l.src.patience() { // else it merely came second
			p.failures[name]++
			l.src.flaky(fmt.Errorf("silent for more than %v", l.src.patience()))
		}
		return
	default:
		p.failures[name]++
	}
	p.last = err
	l.src.flaky(err)
}

func (p *plan) failure() error {
	if p.last == nil {
		return errNoSource
	}
	return fmt.Errorf("%w: %w", errNoSource, p.last)
}

// blame follows a mismatch. A sole sender is guilty; among several, the right bytes will tell.
func (p *plan) blame(t failedTry) error {
	p.tries = append(p.tries, t)
	clear(p.failures)
	sole := true
	for _, part := range t.parts {
		sole = sole && part.src.name() == t.parts[0].src.name()
	}
	if sole && len(t.parts) > 0 {
		p.excluded[t.parts[0].src.name()] = true
		t.parts[0].src.convict(t.err)
	} else {
		p.lone = true
	}
	if len(p.tries) >= maxMismatches {
		return fmt.Errorf("%w: %w", errNoSource, t.err)
	}
	return nil
}

// acquit compares failed tries with the verified bytes: whoever sent other ones is guilty, the others
// are not. It also tells whether readers were shown wrong bytes.
func (p *plan) acquit() error {
	f := p.f
	f.mu.Lock()
	served := f.served
	f.mu.Unlock()
	for i, t := range p.tries {
		for _, part := range t.parts {
			same, err := sameBytes(t.spool, f.spool, part.from, part.to)
			if err != nil {
				return err
			}
			if !same && !p.excluded[part.src.name()] {
				p.excluded[part.src.name()] = true
				part.src.convict(t.err)
			}
		}
		if i == 0 && served > 0 { // only before the first mismatch was anything shown unverified
			same, err := sameBytes(t.spool, f.spool, 0, served)
			if err != nil {
				return err
			}
			f.mu.Lock()
			f.poisoned = !same
			f.mu.Unlock()
		}
	}
	for _, part := range f.parts {
		part.src.good()
	}
	return nil
}

// close hands the evidence over to be dropped with the flight.
func (p *plan) close() {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for _, t := range p.tries {
		p.f.trash = append(p.f.trash, t.spool)
	}
}

// sameBytes compares [from, to) of two spools.
func sameBytes(a, b *spool, from, to int64) (bool, error) {
	const step = 64 << 10
	var x, y [step]byte
	for off := from; off < to; off += step {
		n := min(step, to-off)
		if err := a.readAt(x[:n], off); err != nil {
			return false, err
		}
		if err := b.readAt(y[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}
