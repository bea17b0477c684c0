package substituter

import (
	"bytes"
	"fmt"
)

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
	if err := p.judge(true); err != nil {
		return err
	}
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
	thanked := map[string]bool{}
	for _, part := range f.parts {
		if name := part.src.name(); !thanked[name] && !p.excluded[name] {
			thanked[name] = true
			part.src.good()
		}
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
	if aside := p.f.swarm.aside; aside != nil {
		p.f.trash = append(p.f.trash, aside)
	}
}

// failedTry is a NAR put together from sources of which one lied.
type failedTry struct {
	spool *spool
	parts []part
	err   error
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
