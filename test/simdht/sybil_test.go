package simdht

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
	mh "github.com/multiformats/go-multihash"

	"github.com/flurry-nix/flurry/discovery/dht"
	"github.com/flurry-nix/flurry/verify"
)

const kadProtocol = "/flurry/kad/1.0.0"

// manner is what Sybils do with questions for records. They answer questions for nodes, with each other:
// who does not gets into no table.
type manner int

const (
	silent manner = iota // say nothing
	denies               // know of no record
	points               // name agents that do not exist
)

// gang is a set of identities whose places are near one key. Records that they are given vanish.
type gang struct {
	w       *world
	manner  manner
	members []*node
	peers   []*pb.Message_Peer
	ghosts  []*pb.Message_Peer
}

// near grinds an identity whose place shares so many bits with the target.
func (w *world) near(target [32]byte, least int) peer.ID {
	id := []byte{0, 36, 8, 1, 18, 32}
	id = append(id, make([]byte, ed25519.PublicKeySize)...)
	for {
		for i := 6; i < len(id); i += 8 {
			binary.BigEndian.PutUint64(id[i:], w.rnd.Uint64())
		}
		if shared(sha256.Sum256(id), target) >= least {
			return peer.ID(id)
		}
	}
}

// shared is the number of leading bits that two places have in common.
func shared(a, b [32]byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 256
}

func placeOf(v *verify.Verified) [32]byte {
	key := dht.KeyOf(v.Path().Hash())
	m, err := mh.Encode(key[:], mh.SHA2_256)
	if err != nil {
		panic(err)
	}
	return sha256.Sum256(m)
}

// besiege puts n Sybils around a path's key, in ranges of /16 (0: one each), and makes them known to the agents
// nearest to it and to others.
func (r *run) besiege(v *verify.Verified, n, ranges int, m manner) *gang {
	g := &gang{w: r.w, manner: m}
	target := placeOf(v)
	least := bits.Len(uint(len(r.all))) + 2
	for i := range n {
		a := r.w.machine(r.w.near(target, least))
		if ranges > 0 {
			r.w.move(a, ma.StringCast(fmt.Sprintf("/ip4/%d.240.%d.%d/tcp/6491", 11+i%ranges, i/200, 1+i%200)))
		}
		a.SetStreamHandler(kadProtocol, func(s network.Stream) { g.answer(s) })
		g.members = append(g.members, a)
		g.peers = append(g.peers, &pb.Message_Peer{Id: []byte(a.id), Addrs: [][]byte{a.addr.Bytes()}})
	}
	for i := range 8 {
		a := ma.StringCast(fmt.Sprintf("/ip4/%d.250.0.1/tcp/6491", 11+i))
		g.ghosts = append(g.ghosts, &pb.Message_Peer{Id: []byte(r.w.identity()), Addrs: [][]byte{a.Bytes()}})
	}
	honest := slices.Clone(r.all)
	slices.SortFunc(honest, func(a, b *agent) int {
		return -cmp.Compare(shared(sha256.Sum256([]byte(a.id)), target), shared(sha256.Sum256([]byte(b.id)), target))
	})
	for i, a := range g.members {
		for k := range min(100, len(honest)) {
			to := honest[k]
			if k >= 60 {
				to = honest[r.w.rnd.IntN(len(honest))]
			}
			a.Connect(context.Background(), peer.AddrInfo{ID: to.id, Addrs: []ma.Multiaddr{to.addr}})
		}
		if i%10 == 9 {
			time.Sleep(time.Second)
		}
	}
	return g
}

func (g *gang) answer(s network.Stream) {
	defer s.Close()
	in, out := pbio.NewDelimitedReader(s, network.MessageSizeMax), pbio.NewDelimitedWriter(s)
	rnd := rand.New(rand.NewPCG(1, 1))
	for {
		var q pb.Message
		if in.ReadMsg(&q) != nil {
			return
		}
		a := pb.NewMessage(q.GetType(), q.GetKey(), 0)
		switch q.GetType() {
		case pb.Message_ADD_PROVIDER:
			continue
		case pb.Message_GET_PROVIDERS:
			if g.manner == silent {
				continue
			}
			if g.manner == points {
				a.ProviderPeers = g.ghosts
			}
		}
		for range 20 {
			a.CloserPeers = append(a.CloserPeers, g.peers[rnd.IntN(len(g.peers))])
		}
		if out.WriteMsg(a) != nil {
			return
		}
	}
}

func (g *gang) leave() {
	for _, a := range g.members {
		a.Close()
	}
}

// sybils asks for paths around each of whose keys a fifth of the network are Sybils.
func (r *run) sybils() {
	for _, c := range []struct {
		what   string
		manner manner
		ranges int
	}{
		{"Sybils that say nothing, each in a range of its own", silent, 0},
		{"Sybils that deny, each in a range of its own", denies, 0},
		{"Sybils that deny, in 4 ranges of /16", denies, 4},
		{"Sybils that name others, each in a range of its own", points, 0},
	}[:r.s.sieges] {
		owner := r.all[origins+r.w.rnd.IntN(len(r.all)-origins)]
		for len(owner.has) == 1 { // one that came for an earlier siege: another has its path, too
			owner = r.all[origins+r.w.rnd.IntN(len(r.all)-origins)]
		}
		v := owner.has[0]
		g := r.besiege(v, len(r.all)/4, c.ranges, c.manner)
		time.Sleep(time.Minute)
		n := min(r.s.lookups, len(r.all)/2-2)
		ask := r.everybody(v) // nobody twice: answers are remembered
		r.look(c.what+": a record older than they", n, ask(owner))
		late := r.bring(v)
		time.Sleep(time.Minute)
		r.look(c.what+": also one younger", n, ask(owner, late))
		if o := r.look(c.what+": other paths", n, r.provided); o.share < 0.75 {
			r.t.Errorf("%s: %.1f %% of the look-ups of other paths find", c.what, 100*o.share)
		}
		g.leave()
	}
}
