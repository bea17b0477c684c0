package dht

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/ipfs/go-libdht/kad/key/bitstr"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	mh "github.com/multiformats/go-multihash"

	"github.com/flurry-nix/flurry/verify"
)

// keyDomain separates our keys from every other use of a store hash's SHA-256, the peer wire's included.
const keyDomain = "flurry/dht/1\x00"

// Key is what provider records of a path are filed under: a hash of its store hash. Whoever knows the path can
// compute it; whoever reads the record cannot get back.
type Key [sha256.Size]byte

// KeyOf returns the key of the path with that store hash.
func KeyOf(h verify.StoreHash) Key {
	return sha256.Sum256(append([]byte(keyDomain), h[:]...))
}

// multihash is the key as the DHT wants it.
func (k Key) multihash() mh.Multihash {
	out, err := mh.Encode(k[:], mh.SHA2_256)
	if err != nil {
		panic(err) // a known code and a right length
	}
	return out
}

func keyFrom(m mh.Multihash) (k Key, ok bool) {
	d, err := mh.Decode(m)
	if err != nil || d.Code != mh.SHA2_256 || len(d.Digest) != len(k) {
		return k, false
	}
	return Key(d.Digest), true
}

// place is where a key lies in the DHT.
func (k Key) place() place {
	return sha256.Sum256(k.multihash())
}

type place [sha256.Size]byte

// keySet is what is provided, ordered by place: 64 bytes a key, where the library's own store takes some
// 400. It lives in memory only; the store tells it anew at each start. mu guards list.
type keySet struct {
	mu   sync.Mutex
	list []placed
}

type placed struct {
	place place
	key   Key
}

var _ keystore.Keystore = (*keySet)(nil)

func comparePlaces(a, b placed) int { return bytes.Compare(a.place[:], b.place[:]) }

// Put implements [keystore.Keystore]: it adds keys and returns those that are new.
func (s *keySet) Put(_ context.Context, keys ...mh.Multihash) ([]mh.Multihash, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fresh []mh.Multihash
	var add []placed
	for _, m := range keys {
		k, ok := keyFrom(m)
		if !ok {
			continue
		}
		e := placed{k.place(), k}
		if _, known := slices.BinarySearchFunc(s.list, e, comparePlaces); known {
			continue
		}
		add, fresh = append(add, e), append(fresh, m)
	}
	s.list = append(s.list, add...)
	slices.SortFunc(s.list, comparePlaces)
	s.list = slices.Compact(s.list)
	return fresh, nil
}

// span returns the part of the list below prefix; mu is held.
func (s *keySet) span(prefix bitstr.Key) []placed {
	from, to := bound(prefix, '0'), bound(prefix, '1')
	lo := sort.Search(len(s.list), func(i int) bool { return bytes.Compare(s.list[i].place[:], from[:]) >= 0 })
	hi := sort.Search(len(s.list), func(i int) bool { return bytes.Compare(s.list[i].place[:], to[:]) > 0 })
	return s.list[lo:hi]
}

// bound is the first ('0') or last ('1') place below prefix.
func bound(prefix bitstr.Key, rest byte) (p place) {
	bits := string(prefix) + strings.Repeat(string(rest), max(0, 8*len(p)-len(prefix)))
	for i := range p {
		for _, b := range []byte(bits[8*i : 8*i+8]) {
			p[i] = p[i]<<1 | (b - '0')
		}
	}
	return p
}

// Get implements [keystore.Keystore].
func (s *keySet) Get(_ context.Context, prefix bitstr.Key) ([]mh.Multihash, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	part := s.span(prefix)
	out := make([]mh.Multihash, len(part))
	for i, e := range part {
		out[i] = e.key.multihash()
	}
	return out, nil
}

// CountKeysUpTo implements [keystore.Keystore].
func (s *keySet) CountKeysUpTo(_ context.Context, prefix bitstr.Key, limit int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.span(prefix))
	if limit > 0 {
		n = min(n, limit)
	}
	return n, nil
}

// ContainsPrefix implements [keystore.Keystore].
func (s *keySet) ContainsPrefix(ctx context.Context, prefix bitstr.Key) (bool, error) {
	n, err := s.CountKeysUpTo(ctx, prefix, 1)
	return n > 0, err
}

// Delete implements [keystore.Keystore].
func (s *keySet) Delete(_ context.Context, keys ...mh.Multihash) error {
	gone := make(map[Key]bool, len(keys))
	for _, m := range keys {
		if k, ok := keyFrom(m); ok {
			gone[k] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(e placed) bool { return gone[e.key] })
	return nil
}

// Empty implements [keystore.Keystore].
func (s *keySet) Empty(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = nil
	return nil
}

// Size implements [keystore.Keystore].
func (s *keySet) Size(context.Context) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list), nil
}

// BatchSize implements [keystore.Keystore].
func (s *keySet) BatchSize() int { return 1 << 10 }

// Close implements [keystore.Keystore].
func (s *keySet) Close() error { return nil }

// inOrder sorts keys by place, so that those that go to the same nodes are provided together.
func inOrder(keys []Key) []Key {
	type at struct {
		first uint64
		key   Key
	}
	list := make([]at, len(keys))
	for i, k := range keys {
		p := k.place()
		list[i] = at{binary.BigEndian.Uint64(p[:8]), k}
	}
	slices.SortFunc(list, func(a, b at) int { return cmp.Compare(a.first, b.first) })
	out := make([]Key, len(list))
	for i, e := range list {
		out[i] = e.key
	}
	return out
}
