package mdns

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// announcements is how often we announce ourselves on a link, unasked: at once and after 1, 3 and
	// 7 s. Two would do (RFC 6762, section 8.3); the later ones survive an IPv6 address that is still
	// being checked for duplicates (1–2 s, in which nothing can be sent) and a switch port that is
	// slow to forward.
	announcements = 4
	firstGap      = time.Second

	// quiet is the least time between two of our packets on one link, however many ask: all hear
	// each answer (RFC 6762, section 6). It also bounds what a flood of questions can make us send.
	quiet = time.Second

	// answerAfter is the range of the delay that keeps many machines from answering at once.
	answerAfterMin = 20 * time.Millisecond
	answerAfterMax = 120 * time.Millisecond

	// maxPacket is the largest packet looked at, in bytes: RFC 6762's limit, section 17.
	maxPacket = 9000
)

// responder announces the service on some links and answers questions for it.
type responder struct {
	self  service
	links []link
	log   *slog.Logger
}

func newResponder(self service, links []link, log *slog.Logger) *responder {
	return &responder{self: self, links: links, log: log}
}

// run returns nil when ctx ended, having said goodbye.
func (r *responder) run(ctx context.Context) error {
	socks := make(map[family]socket)
	var errs []error
	for _, f := range []family{ipv4Family, ipv6Family} {
		ifis := f.interfaces(r.links)
		if len(ifis) == 0 {
			continue
		}
		s, err := openSocket(f, ifis)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		socks[f] = s
	}
	if len(socks) == 0 {
		return errors.Join(errs...)
	}
	if len(errs) > 0 {
		r.log.Warn("announcing by one IP version only", "err", errors.Join(errs...))
	}
	asks := make(chan int, 4*maxLinks)
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range socks {
		g.Go(func() error { return r.listen(s, asks) })
	}
	g.Go(func() error {
		defer func() { // ends the listeners
			for _, s := range socks {
				_ = s.Close()
			}
		}()
		return r.speak(ctx, socks, asks)
	})
	return g.Wait()
}

// listen passes on by which interfaces somebody asks for us, until the socket is closed.
func (r *responder) listen(s socket, asks chan<- int) error {
	ours := make(map[int]bool)
	for _, l := range r.links {
		ours[l.ifi.Index] = true
	}
	buf := make([]byte, maxPacket+1)
	for {
		n, ifIndex, toGroup, err := s.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		// Another program's membership brings us packets from interfaces that are none of our
		// business, and anybody can send a packet to our address from afar.
		if !toGroup || !ours[ifIndex] || n > maxPacket || !r.self.asked(buf[:n]) {
			continue
		}
		select {
		case asks <- ifIndex:
		default: // a flood; asks are merged anyway
		}
	}
}

// speaker is what there is to say on one link, and when.
type speaker struct {
	link
	hello, goodbye []byte

	announced int           // announcements made
	gap       time.Duration // until the next announcement
	announce  time.Time     // when it is due; zero after the last
	answer    time.Time     // when an answer is due; zero if nobody asked
	last      time.Time     // when we last spoke
}

// due is when the speaker next has something to say, if ever.
func (s *speaker) due() (time.Time, bool) {
	switch {
	case s.announce.IsZero():
		return s.answer, !s.answer.IsZero()
	case s.answer.IsZero() || s.announce.Before(s.answer):
		return s.announce, true
	default:
		return s.answer, true
	}
}

// asked plans an answer: soon, but not within the quiet time.
func (s *speaker) asked(now time.Time) {
	if !s.answer.IsZero() {
		return
	}
	s.answer = now.Add(answerAfterMin + rand.N(answerAfterMax-answerAfterMin))
	if earliest := s.last.Add(quiet); s.answer.Before(earliest) {
		s.answer = earliest
	}
}

// spoke plans what follows a packet sent now.
func (s *speaker) spoke(now time.Time) {
	s.last, s.answer = now, time.Time{}
	if s.announce.IsZero() || now.Before(s.announce) {
		return
	}
	s.announced++
	if s.announced == announcements {
		s.announce = time.Time{}
		return
	}
	s.announce = now.Add(s.gap)
	s.gap *= 2
}

func (r *responder) speakers(now time.Time) (map[int]*speaker, error) {
	out := make(map[int]*speaker)
	for _, l := range r.links {
		hello, err := r.self.response(l, ttl)
		if err != nil {
			return nil, err
		}
		goodbye, err := r.self.response(l, 0)
		if err != nil {
			return nil, err
		}
		out[l.ifi.Index] = &speaker{link: l, hello: hello, goodbye: goodbye, gap: firstGap, announce: now}
	}
	return out, nil
}

// speak does all the sending, until ctx ends.
func (r *responder) speak(ctx context.Context, socks map[family]socket, asks <-chan int) error {
	speakers, err := r.speakers(time.Now())
	if err != nil {
		return err
	}
	ask, err := question()
	if err != nil {
		return err
	}
	// A goodbye lets browsers that saw us take notice when we come back with other addresses.
	defer func() {
		for _, s := range speakers {
			r.send(socks, s.link, s.goodbye)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ifIndex := <-asks:
			speakers[ifIndex].asked(time.Now())
		case <-timer.C:
			r.sayWhatIsDue(socks, speakers, ask)
		}
		timer.Reset(untilNext(speakers))
	}
}

func (r *responder) sayWhatIsDue(socks map[family]socket, speakers map[int]*speaker, ask []byte) {
	for _, s := range speakers {
		now := time.Now()
		if at, ok := s.due(); !ok || now.Before(at) {
			continue
		}
		r.send(socks, s.link, s.hello)
		if s.announced > 0 && !s.announce.IsZero() && !now.Before(s.announce) {
			// The browser asks at once and then after 2–6 s; should its first question be lost, this
			// one brings the answers, which it hears like any others.
			r.send(socks, s.link, ask)
		}
		s.spoke(now)
	}
}

// send sends by every IP version the link has. A failure is left to the next occasion.
func (r *responder) send(socks map[family]socket, l link, packet []byte) {
	for f, s := range socks {
		if !l.has(f) {
			continue
		}
		if err := s.write(packet, l.ifi.Index); err != nil {
			r.log.Debug("sending by mDNS", "interface", l.ifi.Name, "version", f.String(), "err", err)
		}
	}
}

// untilNext is the time until the first speaker has something to say.
func untilNext(speakers map[int]*speaker) time.Duration {
	wait := time.Hour
	for _, s := range speakers {
		if at, ok := s.due(); ok {
			wait = min(wait, max(time.Until(at), 0))
		}
	}
	return wait
}
