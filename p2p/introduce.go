package p2p

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/discovery"
)

// Introductions: agents that name the same agent in their peers.static learn of each other from it. The one
// that is named tells only of those that asked to be told, at the address that each is connected from: nobody
// is named against its will, and nobody names an address but its own. The ones that are told heed only agents
// that their operator named, and dial few of those that they are told of.
const (
	introduceEvery  = time.Minute      // the list is said again: hints that nobody repeats are forgotten
	introduceLeast  = time.Second      // between two lists: many may come at once
	introduceMost   = 32               // agents in a list; of more, any
	introduceSize   = 16 << 10         // bytes of a list
	introduceBurst  = 32               // agents that are dialled because they were named, at once
	introduceRefill = 10 * time.Second // and one more each
	introduceAgain  = 10 * time.Minute // until one that was named is dialled anew for being named again
	introduceKept   = 1 << 10          // agents remembered to have been named, by whom and when
	frameIntroduce  = 1
)

var errTooOften = errors.New("more introductions than any site causes")

// introduction is an agent in a list: its id and its addresses, multiaddrs without the id.
type introduction struct {
	ID    string   `json:"id"`
	Addrs []string `json:"addrs"`
}

// introductions is what a Host does for its guests, which asked to be introduced, and what it was told by
// others. mu guards guests.
type introductions struct {
	on    bool
	fits  func(netip.Addr) bool // whether an address is of this site
	fresh *rate.Limiter         // agents dialled because they were named
	named *lru.Cache[peer.ID, naming]

	mu     sync.Mutex
	guests map[peer.ID]*guest
}

// naming is who named an agent, and when.
type naming struct {
	by string
	at time.Time
}

// guest is one that is to be introduced, and told of others.
type guest struct {
	p     *Peer
	addrs []string
	news  chan struct{} // holds at most one
	stop  context.CancelFunc
}

func (h *Host) newIntroductions() *introductions {
	named, _ := lru.New[peer.ID, naming](introduceKept)
	in := &introductions{
		on: h.cfg.Introduce, named: named, guests: map[peer.ID]*guest{}, fits: h.cfg.site,
		fresh: rate.NewLimiter(rate.Every(introduceRefill), introduceBurst),
	}
	if in.fits == nil {
		in.fits = func(ip netip.Addr) bool { return h.gater.near(ip) && ip.IsGlobalUnicast() }
	}
	return in
}

// intimate tells whether p may be told of others and may tell: where there is a group, only its members.
func (h *Host) intimate(p *Peer) bool {
	if h.cfg.Secret == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.group
}

// introduce is the handler of those that ask: they say their ports and are told of each other until one leaves.
func (h *Host) introduce(s network.Stream) {
	defer s.Reset()
	running, p := h.running.Load(), h.peers.lookup(s.Conn().RemotePeer())
	if !h.introductions.on || running == nil || p == nil {
		return
	}
	s.SetReadDeadline(time.Now().Add(haveOpenTime))
	var ports [4]byte
	if _, err := io.ReadFull(s, ports[:]); err != nil {
		return
	}
	s.SetReadDeadline(time.Time{})
	ip, ok := dialBackIP(s.Conn().RemoteMultiaddr())
	if !ok || !h.introductions.fits(ip) {
		return
	}
	ctx, stop := context.WithCancel(*running)
	defer stop()
	g := &guest{p: p, news: make(chan struct{}, 1), stop: stop, addrs: addrsAt(ip, binary.BigEndian.Uint16(ports[:]), binary.BigEndian.Uint16(ports[2:]))}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	h.tasks.run(func() { // the guest says nothing more: its end is the end of the stream
		io.Copy(io.Discard, io.LimitReader(s, 1))
		stop()
	})
	h.introductions.enter(g)
	defer h.introductions.leave(g)
	h.tellOthers(ctx, s, g)
}

// addrsAt are an agent's addresses; ports that belong to the system's services are left out.
func addrsAt(ip netip.Addr, tcp, udp uint16) (out []string) {
	if tcp >= dialBackLeast {
		out = append(out, discovery.IP(ip)+"/tcp/"+strconv.Itoa(int(tcp)))
	}
	if udp >= dialBackLeast {
		out = append(out, discovery.IP(ip)+"/udp/"+strconv.Itoa(int(udp))+"/quic-v1")
	}
	return out
}

// enter replaces an earlier stream of the same guest.
func (in *introductions) enter(g *guest) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if old := in.guests[g.p.id]; old != nil {
		old.stop()
	}
	in.guests[g.p.id] = g
	in.changed()
}

func (in *introductions) leave(g *guest) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.guests[g.p.id] == g {
		delete(in.guests, g.p.id)
	}
}

// changed makes all guests be told anew; mu is held.
func (in *introductions) changed() {
	for _, g := range in.guests {
		select {
		case g.news <- struct{}{}:
		default:
		}
	}
}

// admitted makes known that p is of the group now.
func (in *introductions) admitted() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.changed()
}

// tellOthers tells g of the other guests whenever there are new ones, and now and then.
func (h *Host) tellOthers(ctx context.Context, s network.Stream, g *guest) {
	tick := time.NewTicker(introduceEvery)
	defer tick.Stop()
	for {
		if list := h.others(g); len(list) > 0 {
			body, err := json.Marshal(list)
			if err != nil || writeFrame(s, frameIntroduce, body) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(introduceLeast):
		}
		select {
		case <-ctx.Done():
			return
		case <-g.news:
		case <-tick.C:
		}
	}
}

// others are the guests that g is told of.
func (h *Host) others(g *guest) (list []introduction) {
	if !h.intimate(g.p) {
		return nil
	}
	h.introductions.mu.Lock()
	defer h.introductions.mu.Unlock()
	for _, o := range h.introductions.guests {
		if o != g && len(o.addrs) > 0 && h.intimate(o.p) {
			list = append(list, introduction{o.p.name, o.addrs})
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(len(list), introduceMost)]
}

// askIntroductions asks p, if the operator named it, for as long as it is connected; ctx is p's session.
func (h *Host) askIntroductions(ctx context.Context, p *Peer) {
	if !h.introductions.on || !h.dialer.named(p.id) {
		return
	}
	p.mu.Lock()
	asked := p.asked == ctx
	p.asked = ctx
	p.mu.Unlock()
	if asked {
		return
	}
	for wait := haveRetry; ctx.Err() == nil; wait = min(2*wait, haveRetryMost) {
		if h.intimate(p) {
			began := time.Now()
			err := h.hearIntroductions(ctx, p)
			h.log.Debug("no more introductions", "peer", p.name, "err", err)
			if time.Since(began) > haveRetryMost {
				wait = haveRetry
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// hearIntroductions opens the stream and hints at those who are named on it.
func (h *Host) hearIntroductions(ctx context.Context, p *Peer) error {
	opening, cancel := context.WithTimeout(ctx, haveOpenTime)
	defer cancel()
	s, err := h.host.NewStream(network.WithNoDial(opening, "introductions"), p.id, protoPeers)
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	tcp, udp := h.ports()
	s.SetWriteDeadline(time.Now().Add(haveOpenTime))
	if _, err := s.Write(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tcp), udp)); err != nil {
		return err
	}
	pace, r := rate.NewLimiter(rate.Every(introduceLeast/2), 8), bufio.NewReaderSize(s, 1<<10)
	for {
		list, err := readIntroductions(r)
		if err != nil {
			return err
		}
		if !pace.Allow() {
			return errTooOften
		}
		for _, i := range list[:min(len(list), introduceMost)] {
			h.meetIntroduced(p, i)
		}
	}
}

// readIntroductions reads one frame; those of other types are skipped.
func readIntroductions(r *bufio.Reader) (list []introduction, err error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > introduceSize {
		return nil, fmt.Errorf("introductions: a frame of %d bytes", n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(r, frame); err != nil || frame[0] != frameIntroduce {
		return nil, err
	}
	return list, json.Unmarshal(frame[1:], &list)
}

// meetIntroduced makes one that p named be dialled, if that is new and there are not too many. Who answers must
// prove to be that one, as always.
func (h *Host) meetIntroduced(p *Peer, i introduction) {
	id, err := peer.Decode(i.ID)
	if err != nil || h.isBanned(id) {
		return
	}
	now := h.now()
	if h.isConnected(id) {
		if !h.dialer.knows(id) { // it heard of us first
			h.introductions.named.Add(id, naming{p.name, now})
			h.setVia(id, string(discovery.ViaIntroduced))
		}
		return
	}
	f := discovery.Found{Via: discovery.ViaIntroduced, Name: id.String(), PeerID: id.String()}
	for _, text := range i.Addrs {
		if len(f.Addrs) < introduceAddrs && h.introductions.plausible(text) {
			f.Addrs = append(f.Addrs, text)
		}
	}
	before, known := h.introductions.named.Get(id)
	if len(f.Addrs) == 0 || known && now.Sub(before.at) < introduceAgain || !h.introductions.fresh.Allow() {
		return
	}
	h.introductions.named.Add(id, naming{p.name, now})
	h.dialer.found(f)
}

const introduceAddrs = 4 // of one agent: TCP and QUIC, IPv4 and IPv6

// introducedForms are the addresses that an agent may be named at: no names, no relays.
var introducedForms = [][]int{{ma.P_IP4, ma.P_TCP}, {ma.P_IP6, ma.P_TCP}, {ma.P_IP4, ma.P_UDP, ma.P_QUIC_V1}, {ma.P_IP6, ma.P_UDP, ma.P_QUIC_V1}}

// plausible tells whether an agent of this site may listen there.
func (in *introductions) plausible(text string) bool {
	a, err := ma.NewMultiaddr(text)
	if err != nil {
		return false
	}
	var form []int
	port := 0
	for _, c := range a {
		form = append(form, c.Code())
		if c.Code() == ma.P_TCP || c.Code() == ma.P_UDP {
			port, _ = strconv.Atoi(c.Value())
		}
	}
	ip, ok := ipOf(a)
	return ok && in.fits(ip) && port >= dialBackLeast &&
		slices.ContainsFunc(introducedForms, func(f []int) bool { return slices.Equal(f, form) })
}

// introducer is who named p, "" if nobody.
func (in *introductions) introducer(id peer.ID) string {
	n, _ := in.named.Peek(id)
	return n.by
}
