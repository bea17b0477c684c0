package substituter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// repair decides about chunks that fit no claim: none is blamed or fetched anew before a second claim
// was asked for; then they are put aside and fetched from another source. What is proven meanwhile
// shows who sent wrong ones.
func (p *plan) repair(ctx context.Context) error {
	f := p.f
	if err := p.judge(false); err != nil {
		return err
	}
	f.mu.Lock()
	claims, answers, over := len(f.swarm.claims), f.swarm.answers, f.swarm.over
	var misfits []int
	trials := 0
	for i := range f.swarm.misfit {
		misfits = append(misfits, i)
	}
	for i := range f.swarm.tries {
		if from, to := verify.ChunkRange(i, f.v.NarSize()); f.swarm.misfit[i] || !f.swarm.checked.has(from) || !f.swarm.checked.has(to-1) {
			trials++
		}
	}
	f.mu.Unlock()
	if over || claims > 0 && len(misfits) == 0 || claims == 0 && p.wrong == nil {
		return nil
	}
	if p.waitingForChain(chainPatience) || answers < 2 && p.askChain(ctx) {
		return nil
	}
	slices.Sort(misfits) // those with the best chance to be proven soon are the last ones
	slices.Reverse(misfits)
	stuck := claims == 0
	for _, i := range misfits {
		tried, same := p.sameAgain(i)
		if same && p.askChain(ctx) {
			return nil // two sent the same: perhaps it is the claims that are wrong
		}
		if !tried && trials >= asideTrial {
			continue
		}
		ok, err := p.putAside(i)
		if err != nil {
			return err
		}
		if !tried {
			trials++
		}
		stuck = stuck || !ok
	}
	if stuck && !p.askChain(ctx) {
		f.mu.Lock()
		f.swarm.over = true
		f.broadcast()
		f.mu.Unlock()
	}
	return nil
}

// sameAgain tells whether chunk i was put aside before, and whether the bytes that are there now are
// again the same.
func (p *plan) sameAgain(i int) (tried, same bool) {
	f := p.f
	from, to := verify.ChunkRange(i, f.v.NarSize())
	f.mu.Lock()
	tries := f.swarm.tries[i]
	f.mu.Unlock()
	for _, t := range tries {
		if t.at >= 0 && !same {
			same, _ = sameBytesAt(f.swarm.aside, int64(t.at)*verify.ChunkSize, f.spool, from, to-from)
		}
	}
	return len(tries) > 0, same
}

// putAside keeps the bytes of chunk i as evidence and makes it be fetched anew; ok is false if nobody
// could send others, or Nix has them already.
func (p *plan) putAside(i int) (ok bool, err error) {
	f := p.f
	from, to := verify.ChunkRange(i, f.v.NarSize())
	f.mu.Lock()
	parts := partsWithin(f.parts, from, to)
	tries := f.swarm.tries[i]
	ok = from >= f.served && (len(tries) < chunkTries || to >= f.swarm.proven && len(tries) < provenTries)
	f.mu.Unlock()
	if !ok || !p.others(append(slices.Clone(tries), badTry{parts: parts}), from, to) {
		return false, nil
	}
	at, err := f.evidence(from, to)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.swarm.misfit[i] || from < f.served {
		return true, nil // a new claim came: it is being looked at again
	}
	delete(f.swarm.misfit, i)
	f.swarm.checked = f.swarm.checked.cut(from, to)
	f.claimed, f.written = f.claimed.cut(from, to), f.written.cut(from, to)
	f.prefix = min(f.prefix, from)
	f.parts = partsOutside(f.parts, from, to)
	f.progress = time.Now()
	if f.swarm.tries == nil {
		f.swarm.tries = map[int][]badTry{}
	}
	f.swarm.tries[i] = append(tries, badTry{at, parts})
	for l := range f.legs {
		if l.src.fromPeer() && sentAny(parts, l.src.name()) {
			l.dismissed = true
			l.cancel()
		}
	}
	f.broadcast()
	return true, nil
}

// evidence copies [from, to) aside; it returns where, -1 if there is no more room for it.
func (f *flight) evidence(from, to int64) (at int, err error) {
	sw := &f.swarm // aside and asides are the run goroutine's
	if sw.asides >= asideMost {
		return -1, nil
	}
	if sw.aside == nil {
		f.all.mu.Lock()
		s, err := f.all.newSpool(asideMost * verify.ChunkSize)
		f.all.mu.Unlock()
		if err != nil {
			return -1, nil
		}
		sw.aside = s
	}
	chunk := make([]byte, to-from)
	if err := f.spool.readAt(chunk, from); err != nil {
		return -1, errors.Join(errLocal, err)
	}
	if err := f.all.write(sw.aside, chunk, int64(sw.asides)*verify.ChunkSize); err != nil {
		return -1, nil
	}
	sw.asides++
	return sw.asides - 1, nil
}

// others tells whether somebody is left who did not try to send [from, to).
func (p *plan) others(tries []badTry, from, to int64) bool {
	for _, s := range p.candidates() {
		if p.excluded[s.name()] || p.failures[s.name()] >= triesPerSource {
			continue
		}
		if part, ok := s.(partialSource); ok {
			if _, missing := part.held.gap(from, to); missing {
				continue
			}
		}
		if !slices.ContainsFunc(tries, func(t badTry) bool { return sentAny(t.parts, s.name()) }) {
			return true
		}
	}
	return false
}

// judge compares the chunks that were put aside with the right ones, once these are proven or all is:
// whoever sent other bytes is guilty, the others are above suspicion again.
func (p *plan) judge(all bool) error {
	f := p.f
	f.mu.Lock()
	proven, s := f.swarm.proven, f.spool
	if len(f.swarm.claims) == 0 {
		proven = f.v.NarSize()
	}
	cases := map[int][]badTry{}
	for i, tries := range f.swarm.tries {
		if from, _ := verify.ChunkRange(i, f.v.NarSize()); all || from >= proven {
			cases[i] = tries
			delete(f.swarm.tries, i)
		}
	}
	aside := f.swarm.aside
	f.mu.Unlock()
	for i, tries := range cases {
		base, _ := verify.ChunkRange(i, f.v.NarSize())
		for _, t := range tries {
			for _, part := range t.parts {
				if t.at < 0 || p.excluded[part.src.name()] {
					continue
				}
				same, err := sameBytesAt(aside, int64(t.at)*verify.ChunkSize+part.from-base, s, part.from, part.len())
				if err != nil {
					return errors.Join(errLocal, err)
				}
				if !same {
					f.all.stats.Rejected.Add(1)
					p.excluded[part.src.name()] = true
					part.src.convict(fmt.Errorf("chunk %d of a NAR is not the proven one", i))
				}
			}
		}
	}
	return nil
}

// mayRepair tells whether a NAR that is wrong as a whole, and has several senders, may be looked at
// chunk by chunk.
func (p *plan) mayRepair() bool {
	f := p.f
	f.mu.Lock()
	several := slices.ContainsFunc(f.parts, func(x part) bool { return x.src.name() != f.parts[0].src.name() })
	over := f.swarm.over
	f.mu.Unlock()
	if p.wrong != nil || over || !several || f.v.NarSize() < chainLeast {
		return false
	}
	return p.waitingForChain(chainPatience) ||
		slices.ContainsFunc(p.wholePeers(p.candidates()), func(s peerSource) bool { return !p.ask.asked[s.name()] })
}

// shunned are the suspects, as long as somebody else among the peers can be asked, or the central cache
// instead of somebody beyond the site.
func (p *plan) shunned(candidates []source) map[string]bool {
	if len(p.suspect) == 0 {
		return nil
	}
	out, others, cache := map[string]bool{}, false, false
	for _, s := range candidates {
		name := s.name()
		if _, ok := p.suspect[name]; ok {
			out[name] = true
		} else if !p.excluded[name] && p.failures[name] < triesPerSource {
			others, cache = others || s.fromPeer(), cache || !s.fromPeer()
		}
	}
	for _, s := range candidates {
		if _, beyond := s.(farSource); !others && !(beyond && cache) {
			delete(out, s.name())
		}
	}
	return out
}

// suspects are the senders of chunks that were put aside and are not judged yet, with these chunks.
func (p *plan) suspects() map[string]spans {
	f := p.f
	f.mu.Lock()
	if len(f.swarm.tries) == 0 || f.swarm.over {
		f.mu.Unlock()
		return nil
	}
	cases := maps.Clone(f.swarm.tries)
	f.mu.Unlock()
	out := map[string]spans{}
	for i, tries := range cases {
		from, to := verify.ChunkRange(i, f.v.NarSize())
		if !p.others(tries, from, to) {
			to = from // nobody else is left: whoever sent it may do so again
		}
		for _, t := range tries {
			for _, part := range t.parts {
				out[part.src.name()] = out[part.src.name()].add(from, to)
			}
		}
	}
	return out
}

func sentAny(parts []part, name string) bool {
	return slices.ContainsFunc(parts, func(p part) bool { return p.src.name() == name })
}

// partsWithin returns who sent [from, to), partsOutside who sent the rest.
func partsWithin(parts []part, from, to int64) (out []part) {
	for _, p := range parts {
		if s := (span{max(p.from, from), min(p.to, to)}); s.from < s.to {
			out = append(out, part{p.src, s})
		}
	}
	return out
}

func partsOutside(parts []part, from, to int64) (out []part) {
	for _, p := range parts {
		for _, s := range (spans{p.span}).cut(from, to) {
			out = append(out, part{p.src, s})
		}
	}
	return out
}

// sameBytesAt compares n bytes of two spools.
func sameBytesAt(a *spool, aOff int64, b *spool, bOff, n int64) (bool, error) {
	x, y := make([]byte, n), make([]byte, n)
	if err := a.readAt(x, aOff); err != nil {
		return false, err
	}
	if err := b.readAt(y, bOff); err != nil {
		return false, err
	}
	return bytes.Equal(x, y), nil
}
