package mdns

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
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

// responder announces the service on some links, answers questions for it, asks for others and passes on
// what it hears of them.
type responder struct {
	self  service
	links []link
	tell  func(e entry, l link) // called by one goroutine per IP version
	limit *rate.Limiter         // of packets looked at
	log   *slog.Logger
}

func newResponder(self service, links []link, tell func(entry, link), log *slog.Logger) *responder {
	return &responder{self: self, links: links, tell: tell, limit: rate.NewLimiter(packetRate, packetBurst), log: log}
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
	questions := make(chan ask, 4*maxLinks)
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range socks {
		g.Go(func() error { return r.listen(s, questions) })
	}
	g.Go(func() error {
		defer func() { // ends the listeners
			for _, s := range socks {
				_ = s.Close()
			}
		}()
		return r.speak(ctx, socks, questions)
	})
	return g.Wait()
}

// ask is a question heard on a link: one for us, or one for everybody, which spares us the same.
type ask struct {
	ifIndex     int
	us, service bool
}

// listen takes packets until the socket is closed: questions to speak about, answers to tell of.
func (r *responder) listen(s socket, questions chan<- ask) error {
	ours := make(map[int]link)
	for _, l := range r.links {
		ours[l.ifi.Index] = l
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
		l, known := ours[ifIndex]
		if !toGroup || !known || n > maxPacket || !r.limit.Allow() {
			continue
		}
		packet := buf[:n]
		for _, e := range entries(packet) {
			r.tell(e, l)
		}
		q := ask{ifIndex: ifIndex, us: r.self.asked(packet), service: asks(packet)}
		if !q.us && !q.service {
			continue
		}
		select {
		case questions <- q:
		default: // a flood; questions are merged anyway
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
	ask       time.Time     // when a question is due
	last      time.Time     // when we last spoke
}

// due is when the speaker next has something to say.
func (s *speaker) due() time.Time {
	at := s.ask
	for _, t := range []time.Time{s.announce, s.answer} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	return at
}

// heardAsk puts our own question off: the answers to another's reach us, too. Early questions are asked
// all the same, as long as we are new here.
func (s *speaker) heardAsk(now time.Time) {
	if s.announce.IsZero() {
		s.ask = now.Add(askEvery + rand.N(askSpread))
	}
}

// askedAll plans the next question after one was sent: with each announcement, then now and then.
func (s *speaker) askedAll(now time.Time) {
	s.ask = now.Add(askEvery + rand.N(askSpread))
	if !s.announce.IsZero() {
		s.ask = s.announce
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
		out[l.ifi.Index] = &speaker{link: l, hello: hello, goodbye: goodbye, gap: firstGap, announce: now, ask: now}
	}
	return out, nil
}

// speak does all the sending, until ctx ends.
func (r *responder) speak(ctx context.Context, socks map[family]socket, questions <-chan ask) error {
	speakers, err := r.speakers(time.Now())
	if err != nil {
		return err
	}
	all, err := question()
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
		case q := <-questions:
			if q.us {
				speakers[q.ifIndex].asked(time.Now())
			}
			if q.service {
				speakers[q.ifIndex].heardAsk(time.Now())
			}
		case <-timer.C:
			r.sayWhatIsDue(socks, speakers, all)
		}
		timer.Reset(untilNext(speakers))
	}
}

func (r *responder) sayWhatIsDue(socks map[family]socket, speakers map[int]*speaker, all []byte) {
	for _, s := range speakers {
		now := time.Now()
		if due(s.announce, now) || due(s.answer, now) {
			r.send(socks, s.link, s.hello)
			s.spoke(now)
		}
		if due(s.ask, now) {
			r.send(socks, s.link, all)
			s.askedAll(now)
		}
	}
}

func due(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

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
		wait = min(wait, max(time.Until(s.due()), 0))
	}
	return wait
}
