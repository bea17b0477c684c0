package p2p

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/FastFilter/xorfilter"
)

// A filter's size on the wire, in bytes, before its fingerprints: count, seed, segment length,
// segment count length, number of fingerprints.
const snapshotHeader = 8 + 8 + 4 + 4 + 4

// maxFingerprints bounds a peer's filter: 2 million paths, about 4.5 MB.
const maxFingerprints = 2_300_000

// maxDeltaKeys bounds what a have-set remembers on top of its filter; a sender makes a new snapshot
// long before.
const maxDeltaKeys = 1 << 16

var errFilter = errors.New("malformed have-set")

// haveSet is what a peer says it has: a filter and what changed since. It errs only in claiming: about
// one absent key in 65,000 seems present. Safe for concurrent use; the lock guards all fields.
type haveSet struct {
	mu      sync.RWMutex
	filter  *xorfilter.BinaryFuse[uint16] // nil: empty
	count   int                           // keys in filter, as the peer said
	added   map[uint64]struct{}
	removed map[uint64]struct{}
}

// Has tells whether the peer claims key.
func (s *haveSet) Has(key uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, ok := s.added[key]; ok {
		return true
	}
	if _, ok := s.removed[key]; ok {
		return false
	}
	return s.filter != nil && s.filter.Contains(key)
}

// Len returns about how many keys the peer claims.
func (s *haveSet) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return max(0, s.count+len(s.added)-len(s.removed))
}

// replace installs a snapshot.
func (s *haveSet) replace(f *xorfilter.BinaryFuse[uint16], count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filter, s.count, s.added, s.removed = f, count, nil, nil
}

// apply takes over a delta.
func (s *haveSet) apply(added, removed []uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.added)+len(s.removed)+len(added)+len(removed) > maxDeltaKeys {
		return fmt.Errorf("%w: more than %d changes without a snapshot", errFilter, maxDeltaKeys)
	}
	if s.added == nil {
		s.added, s.removed = map[uint64]struct{}{}, map[uint64]struct{}{}
	}
	for _, k := range added {
		delete(s.removed, k)
		s.added[k] = struct{}{}
	}
	for _, k := range removed {
		delete(s.added, k)
		s.removed[k] = struct{}{}
	}
	return nil
}

// encodeSnapshot builds the filter over keys and appends it to b. It sorts keys.
func encodeSnapshot(b []byte, keys []uint64) ([]byte, error) {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(len(keys)))
	if len(keys) == 0 {
		return append(b, make([]byte, snapshotHeader-8)...), nil
	}
	f, err := xorfilter.NewBinaryFuse[uint16](keys)
	if err != nil {
		return nil, fmt.Errorf("build filter of %d keys: %w", len(keys), err)
	}
	b = le.AppendUint64(b, f.Seed)
	b = le.AppendUint32(b, f.SegmentLength)
	b = le.AppendUint32(b, f.SegmentCountLength)
	b = le.AppendUint32(b, uint32(len(f.Fingerprints)))
	b = slices.Grow(b, 2*len(f.Fingerprints))
	for _, fp := range f.Fingerprints {
		b = le.AppendUint16(b, fp)
	}
	return b, nil
}

// decodeSnapshot checks everything that [xorfilter.BinaryFuse.Contains] relies on, so that a hostile
// filter cannot index outside its fingerprints. The filter is nil for an empty set.
func decodeSnapshot(b []byte) (*xorfilter.BinaryFuse[uint16], int, error) {
	if len(b) < snapshotHeader {
		return nil, 0, fmt.Errorf("%w: %d bytes", errFilter, len(b))
	}
	le := binary.LittleEndian
	count, seed := le.Uint64(b), le.Uint64(b[8:])
	segLen, segCountLen, n := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
	b = b[snapshotHeader:]
	if count > maxFingerprints || n > maxFingerprints || len(b) != int(2*n) {
		return nil, 0, fmt.Errorf("%w: %d keys, %d fingerprints in %d bytes", errFilter, count, n, len(b))
	}
	if n == 0 {
		return nil, 0, nil
	}
	if segLen == 0 || segLen&(segLen-1) != 0 || segLen > n || segCountLen == 0 || uint64(segCountLen)+2*uint64(segLen) != uint64(n) {
		return nil, 0, fmt.Errorf("%w: segments of %d, %d, %d fingerprints", errFilter, segLen, segCountLen, n)
	}
	f := &xorfilter.BinaryFuse[uint16]{
		Seed: seed, SegmentLength: segLen, SegmentLengthMask: segLen - 1,
		SegmentCount: segCountLen / segLen, SegmentCountLength: segCountLen,
		Fingerprints: make([]uint16, n),
	}
	for i := range f.Fingerprints {
		f.Fingerprints[i] = le.Uint16(b[2*i:])
	}
	return f, int(count), nil
}

// encodeDelta appends added and removed keys to b.
func encodeDelta(b []byte, added, removed []uint64) []byte {
	b = binary.AppendUvarint(b, uint64(len(added)))
	b = binary.AppendUvarint(b, uint64(len(removed)))
	for _, list := range [][]uint64{added, removed} {
		for _, k := range list {
			b = binary.LittleEndian.AppendUint64(b, k)
		}
	}
	return b
}

// decodeDelta is the reverse of encodeDelta.
func decodeDelta(b []byte) (added, removed []uint64, err error) {
	na, i := binary.Uvarint(b)
	if i <= 0 {
		return nil, nil, fmt.Errorf("%w: delta", errFilter)
	}
	nr, j := binary.Uvarint(b[i:])
	if j <= 0 {
		return nil, nil, fmt.Errorf("%w: delta", errFilter)
	}
	b = b[i+j:]
	if na > maxDeltaKeys || nr > maxDeltaKeys || uint64(len(b)) != 8*(na+nr) {
		return nil, nil, fmt.Errorf("%w: delta of %d and %d keys in %d bytes", errFilter, na, nr, len(b))
	}
	keys := make([]uint64, na+nr)
	for k := range keys {
		keys[k] = binary.LittleEndian.Uint64(b[8*k:])
	}
	return keys[:na], keys[na:], nil
}
