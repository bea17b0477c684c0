package p2p

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	troubleShown = time.Hour // how long an operator reads of a peer's latest trouble
	falseTold    = 0.25      // share of false claims from which on they are told: three in a row
)

// trouble is what last went wrong with a peer, for operators: it decides nothing.
type trouble struct {
	what  string // "" for nothing
	at    time.Time
	count int
}

// add notes one more.
func (t *trouble) add(now time.Time, err error) {
	if now.Sub(t.at) > troubleShown {
		t.count = 0
	}
	t.what, t.at = cleanText(err.Error(), maxReason), now
	t.count++
}

// text tells of it, "" if it is long ago.
func (t *trouble) text(now time.Time) string {
	switch {
	case t.what == "" || now.Sub(t.at) > troubleShown:
		return ""
	case t.count > 1:
		return fmt.Sprintf("%s (trouble %d times, last %s ago)", t.what, t.count, now.Sub(t.at).Round(time.Second))
	}
	return fmt.Sprintf("%s (%s ago)", t.what, now.Sub(t.at).Round(time.Second))
}

// Useless records an answer that helps nobody, such as a narinfo that no key of ours signed. It may be no
// fault at all: the peer loses its place in the order, as by a false claim, and stays in.
func (p *Peer) Useless(err error) {
	p.answered(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble.add(p.host.now(), err)
}

// OnUnreached makes fn be called after every failed dial of a peer that the operator named: perhaps its
// name has another address now. fn must not block.
func (h *Host) OnUnreached(fn func()) { h.dialer.unreached.Store(&fn) }

// declined notes that the peer says it is busy, for as long as its Retry-After says. It is asked last until
// then, with jitter, so that not all come back at once; it says nothing against it.
func (p *Peer) declined(retryAfter string) {
	d := busyTime
	if seconds, err := strconv.ParseUint(retryAfter, 10, 16); err == nil && seconds > 0 {
		d = min(time.Duration(seconds)*time.Second, busyMost)
	}
	now := p.host.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busyUntil = latest(p.busyUntil, now.Add(d+rand.N(d/2)))
	p.trouble.add(now, errors.New("says that it is busy"))
}

// namedAway returns the peers that the operator named and that could not be reached yet, in no order.
func (d *dialer) namedAway() []PeerStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.h.now()
	var out []PeerStatus
	for _, n := range d.hints {
		if n.Via != discovery.ViaStatic || n.trouble.what == "" || n.id != "" && d.h.isConnected(n.id) {
			continue
		}
		s := PeerStatus{ID: n.id.String(), Addrs: []string{n.Name}, Via: string(n.Via), State: StateAway, Reason: n.trouble.text(now)}
		if n.id == "" {
			s.ID = ""
		}
		out = append(out, s)
	}
	return out
}

// withoutLines makes one line of libp2p's list of failed dials: the last one says why.
func withoutLines(err error) error {
	text := strings.TrimSpace(err.Error())
	for strings.HasPrefix(text, "failed to dial") { // the second names an id that was made up
		_, rest, ok := strings.Cut(text, ": ")
		if !ok {
			break
		}
		text = rest
	}
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		return errors.New(strings.TrimLeft(text[i+1:], " *"))
	}
	return errors.New(text)
}
