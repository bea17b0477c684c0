package p2p

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/verify"
)

// Bounds of what agents tell each other about NARs on their way.
const (
	frameFlights  = 1                    // announcements of NARs
	frameFetched  = 2                    // uvarint: bytes of public NARs got from central caches since the start
	maxHeldSpans  = 32                   // ranges in one announcement
	maxFlight     = 10 + maxHeldSpans*20 // bytes of one announcement
	maxFlightBody = 256 << 10            // bytes of a frame
	// What is remembered of all peers' announcements takes boardMost bytes, and of one peer's boardPeerMost: those of a
	// thousand NARs. So much as boardPeerLeast each may have however much the others told.
	boardMost      = 16 << 20
	boardPeerMost  = 512 << 10
	boardPeerLeast = 16 << 10
	// flightMemory is what an announcement takes, in bytes, without its ranges, which take 16 each: seen with announcements
	// of different NARs.
	flightMemory = 512
	fetchedMost  = 1.25e9               // bytes a second that a peer may fetch, as far as is believed: 10 Gbit/s
	flightGather = 4 * time.Millisecond // announcements come in bursts: one frame for many
	// What need not be told at once waits for flightLazy for each peer that is told; with more than flightMany, who all
	// tell all, in proportion longer; flightLazyMost at most.
	flightLazy     = 10 * time.Millisecond
	flightMany     = 8
	flightLazyMost = 500 * time.Millisecond
	flightRate     = 512 << 10 // bytes a second of announcements from one peer, in the long run
	flightBurst    = 4 << 20
	flightOpening  = 10 * time.Second
	tombstoneLife  = time.Minute // how long "nothing more to tell" is kept for slow readers
	// Two overloaded machines easily take each other for dead and close what connects them; it is made anew within about a
	// second, and what was told still holds. A connection that broke by itself ends it at once.
	flightAfterglow = 1500 * time.Millisecond
)

var errFlights = errors.New("malformed announcement of NARs on their way")

// Progress is how far a machine is with one NAR. Stage is the substituter's word, 0 for nothing to tell
// any more; Held are byte ranges [from, to) that can be had from it.
type Progress struct {
	Stage uint8
	Held  [][2]int64
}

// Flying is a peer's announcement.
type Flying struct {
	Peer    *Peer
	Suspect bool // better left alone for the moment; what it told still holds
	Progress
}

// flightBoard is what this machine and its peers say about NARs on their way. mu guards all fields.
type flightBoard struct {
	mu      sync.Mutex
	version int64
	own     map[uint64]ownFlight
	news    chan struct{} // closed when what changed is to be told
	later   bool          // it will be closed soon
	theirs  map[uint64]map[*Peer]heardFlight
	sizes   map[*Peer]int64          // bytes of entries in theirs
	size    int64                    // their sum
	opened  int                      // streams of announcements so far
	streams map[*Peer]int            // each one's latest, by its number
	waiting map[uint64]chan struct{} // closed when theirs of that key changes

	fetched  int64          // by this machine
	toldBy   map[*Peer]told // what peers said that they fetched
	byOthers int64          // the sum of its growth
}

type ownFlight struct {
	Progress
	version int64
	at      time.Time
}

// told is how many bytes a peer said that it fetched.
type told struct {
	total int64
	at    time.Time
}

type heardFlight struct {
	Progress
	stream int // on which it was told
}

// memory is about what an announcement takes, in bytes.
func (p Progress) memory() int64 { return flightMemory + 16*int64(len(p.Held)) }

func newFlightBoard() *flightBoard {
	return &flightBoard{
		own: map[uint64]ownFlight{}, news: make(chan struct{}), theirs: map[uint64]map[*Peer]heardFlight{},
		sizes: map[*Peer]int64{}, streams: map[*Peer]int{}, waiting: map[uint64]chan struct{}{}, toldBy: map[*Peer]told{},
	}
}

// Tell announces this machine's progress with a publicly signed NAR to all peers; unless at once, together with
// what else there is to tell within half a second.
func (h *Host) Tell(d verify.PathDigest, p Progress, atOnce bool) {
	b, key, peers := h.board, d.Key(), h.Neighbours()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.version++
	b.own[key] = ownFlight{p, b.version, time.Now()}
	if p.Stage == 0 {
		delete(b.waiting, key)
	}
	if atOnce {
		b.publish()
	} else {
		b.publishLater(peers)
	}
}

// publish lets peers be told of what changed; mu is held.
func (b *flightBoard) publish() {
	close(b.news)
	b.news = make(chan struct{})
}

// publishLater does so after a while that depends on how many peers there are; mu is held.
func (b *flightBoard) publishLater(peers int) {
	if b.later {
		return
	}
	b.later = true
	wait := flightLazy * time.Duration(peers) * time.Duration(max(peers, flightMany)) / flightMany
	time.AfterFunc(min(wait, flightLazyMost), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.later = false
		b.publish()
	})
}

// Flying returns what connected peers that mostly keep their word told of a NAR.
func (h *Host) Flying(d verify.PathDigest) []Flying {
	b, now := h.board, h.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Flying
	for p, told := range b.theirs[d.Key()] {
		if suspect, heeded := p.heeded(now); heeded {
			out = append(out, Flying{p, suspect, told.Progress})
		}
	}
	return out
}

// News is closed at the next announcement of a peer about that NAR. It is forgotten with the next Tell
// of stage 0.
func (h *Host) News(d verify.PathDigest) <-chan struct{} {
	b, key := h.board, d.Key()
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := b.waiting[key]
	if ch == nil {
		ch = make(chan struct{})
		b.waiting[key] = ch
	}
	return ch
}

// Neighbours returns how many neighbours are connected.
func (h *Host) Neighbours() int { return len(h.peers.connected()) }

// NeighbourIDs returns the ids of the neighbours that are connected.
func (h *Host) NeighbourIDs() []string {
	peers := h.peers.connected()
	ids := make([]string, len(peers))
	for i, p := range peers {
		ids[i] = p.name
	}
	return ids
}

// Spread is about how long it takes until what is told here was answered by all neighbours but those that are
// slow, by their ids: twice the slowest other one's round trip.
func (h *Host) Spread(slow func(id string) bool) time.Duration {
	var most time.Duration
	for _, p := range h.peers.connected() {
		if !slow(p.name) {
			most = max(most, p.RTT())
		}
	}
	return 2 * most
}

// Fetched tells peers how many bytes of public NARs this machine got from
// central caches since it started. It returns how many peers got while they were connected.
func (h *Host) Fetched(own int64) int64 {
	b, peers := h.board, h.Neighbours()
	b.mu.Lock()
	defer b.mu.Unlock()
	if own != b.fetched {
		b.fetched = own
		b.publishLater(peers)
	}
	return b.byOthers
}

// heardFetched takes over what a peer has fetched by now.
func (b *flightBoard) heardFetched(p *Peer, body []byte, now time.Time) error {
	total, n := binary.Uvarint(body)
	if n <= 0 || total > 1<<60 {
		return errFlights
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if before, ok := b.toldBy[p]; ok && int64(total) > before.total {
		likely := fetchedMost * (1 + max(0, now.Sub(before.at).Seconds()))
		b.byOthers += min(int64(total)-before.total, int64(likely))
	}
	b.toldBy[p] = told{int64(total), now}
	return nil
}

// heard takes a peer's announcement over, without its ranges or not at all where they would take too much memory.
func (b *flightBoard) heard(p *Peer, key uint64, progress Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ch := b.waiting[key]; ch != nil {
		close(ch)
		delete(b.waiting, key)
	}
	of := b.theirs[key]
	old, known := of[p]
	if progress.Stage == 0 {
		if known {
			b.drop(p, key)
		}
		return
	}
	var had int64
	if known {
		had = old.memory()
	}
	if !b.room(p, progress.memory()-had) {
		if progress.Held = nil; !known && !b.room(p, progress.memory()) {
			return
		}
	}
	if of == nil {
		of = map[*Peer]heardFlight{}
		b.theirs[key] = of
	}
	of[p] = heardFlight{progress, b.streams[p]}
	b.took(p, progress.memory()-had)
}

// room tells whether n more bytes of a peer's announcements may be remembered; mu is held.
func (b *flightBoard) room(p *Peer, n int64) bool {
	mine := b.sizes[p] + n
	return n <= 0 || mine <= boardPeerLeast || mine <= boardPeerMost && b.size+n <= boardMost
}

// took notes n more bytes of a peer's announcements; mu is held.
func (b *flightBoard) took(p *Peer, n int64) {
	b.size += n
	if b.sizes[p] += n; b.sizes[p] == 0 {
		delete(b.sizes, p)
	}
}

// drop removes one entry; mu is held.
func (b *flightBoard) drop(p *Peer, key uint64) {
	b.took(p, -b.theirs[key][p].memory())
	delete(b.theirs[key], p)
	if len(b.theirs[key]) == 0 {
		delete(b.theirs, key)
	}
}

// began numbers a stream of announcements.
func (b *flightBoard) began(p *Peer) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	b.streams[p] = b.opened
	return b.opened
}

// forget drops all that a peer told on a stream and those before it.
func (b *flightBoard) forget(p *Peer, stream int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.streams[p] == stream {
		delete(b.toldBy, p)
		delete(b.streams, p)
	}
	for key, of := range b.theirs {
		if told, ok := of[p]; ok && told.stream <= stream {
			b.drop(p, key)
			if ch := b.waiting[key]; ch != nil {
				close(ch)
				delete(b.waiting, key)
			}
		}
	}
}

// since returns the announcements after a version as frame bodies, and the version they lead to.
func (b *flightBoard) since(version int64) (bodies [][]byte, now int64, news <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var body []byte
	for key, f := range b.own {
		if f.Stage == 0 && time.Since(f.at) > tombstoneLife {
			delete(b.own, key)
			continue
		}
		if f.version <= version || version == 0 && f.Stage == 0 {
			continue
		}
		body = appendFlight(body, key, f.Progress)
		if len(body) > maxFlightBody/2 {
			bodies, body = append(bodies, body), nil
		}
	}
	if body != nil {
		bodies = append(bodies, body)
	}
	return bodies, b.version, b.news
}

func (b *flightBoard) ownFetched() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fetched
}

func appendFlight(b []byte, key uint64, p Progress) []byte {
	held := p.Held[:min(len(p.Held), maxHeldSpans)]
	b = binary.LittleEndian.AppendUint64(b, key)
	b = append(b, p.Stage, byte(len(held)))
	for _, s := range held {
		b = binary.AppendUvarint(b, uint64(s[0]))
		b = binary.AppendUvarint(b, uint64(s[1]-s[0]))
	}
	return b
}

// parseFlight reads one announcement from b and returns the rest.
func parseFlight(b []byte) (key uint64, p Progress, rest []byte, err error) {
	if len(b) < 10 || b[9] > maxHeldSpans {
		return 0, p, nil, errFlights
	}
	key, p.Stage = binary.LittleEndian.Uint64(b), b[8]
	n := int(b[9])
	b = b[10:]
	for range n {
		from, i := binary.Uvarint(b)
		if i <= 0 {
			return 0, p, nil, errFlights
		}
		length, j := binary.Uvarint(b[i:])
		const most = 1 << 50 // bytes; no NAR is larger, and sums cannot overflow
		if j <= 0 || from > most || length == 0 || length > most {
			return 0, p, nil, errFlights
		}
		p.Held = append(p.Held, [2]int64{int64(from), int64(from + length)})
		b = b[i+j:]
	}
	return key, p, b, nil
}

// tellFlights writes this machine's announcements to p until ctx, which is p's session, ends.
func (h *Host) tellFlights(ctx context.Context, p *Peer) {
	for wait := haveRetry; ctx.Err() == nil; wait = min(2*wait, haveRetryMost) {
		if err := h.tellFlightsOnce(ctx, p); ctx.Err() == nil {
			h.log.Debug("announcements ended", "peer", p.name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (h *Host) tellFlightsOnce(ctx context.Context, p *Peer) error {
	opening, cancel := context.WithTimeout(ctx, flightOpening)
	defer cancel()
	s, err := h.host.NewStream(network.WithNoDial(opening, "flights"), p.id, protoFlights)
	if err != nil {
		return err
	}
	defer s.Reset()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	told := int64(-1)
	for version := int64(0); ; {
		bodies, now, news := h.board.since(version)
		if !h.paused.Load() {
			var frames []byte // in one write
			if n := h.board.ownFetched(); n != told {
				frames, told = appendFrame(frames, frameFetched, binary.AppendUvarint(nil, uint64(n))), n
			}
			for _, body := range bodies {
				frames = appendFrame(frames, frameFlights, body)
			}
			if len(frames) > 0 {
				if err := writeFrames(s, frames); err != nil {
					return err
				}
			}
		}
		version = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(flightGather):
		}
	}
}

// hearFlights reads a peer's announcements for as long as it tells.
func (h *Host) hearFlights(s network.Stream) {
	defer s.Reset()
	p := h.peers.get(s.Conn().RemotePeer())
	if p == nil || !h.befriend(p) || p.far.Load() || p.hearing.Swap(true) {
		return // one stream from a peer at a time
	}
	defer p.hearing.Store(false)
	if p.flightBudget == nil { // one stream at a time uses it, however many there were
		p.flightBudget = rate.NewLimiter(flightRate, flightBurst)
	}
	if !p.flightBudget.AllowN(time.Now(), haveOpenCost) {
		return
	}
	stream := h.board.began(p)
	err := h.readFlights(bufio.NewReaderSize(s, 4<<10), p, p.flightBudget)
	h.log.Debug("peer's announcements ended", "peer", p.name, "err", err)
	if closed := new(network.ConnError); errors.As(err, &closed) {
		time.AfterFunc(flightAfterglow, func() { h.board.forget(p, stream) })
		return
	}
	h.board.forget(p, stream)
}

// readFlights reads frames one announcement at a time: a frame that does not come takes no memory.
func (h *Host) readFlights(r *bufio.Reader, p *Peer, budget *rate.Limiter) error {
	for {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		if n == 0 || n > maxFlightBody {
			return fmt.Errorf("%w: frame of %d bytes", errFlights, n)
		}
		if !budget.AllowN(time.Now(), max(int(n), haveFrameCost)) {
			return errTooMuch
		}
		kind, err := r.ReadByte()
		if err != nil {
			return err
		}
		for left := int(n) - 1; left > 0; {
			piece, err := r.Peek(min(left, maxFlight))
			if err != nil {
				return err
			}
			rest := piece[len(piece):]
			switch kind { // others are from a later version, and so is what follows a number
			case frameFetched:
				kind, err = 0, h.board.heardFetched(p, piece, h.now())
			case frameFlights:
				var key uint64
				var progress Progress
				if key, progress, rest, err = parseFlight(piece); err == nil {
					h.board.heard(p, key, progress)
				}
			}
			if err != nil {
				return err
			}
			used := len(piece) - len(rest)
			r.Discard(used)
			left -= used
		}
	}
}
