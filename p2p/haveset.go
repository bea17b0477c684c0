package p2p

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

// maxFrameKeys bounds the keys of either kind in one delta; a sender's journal is shorter.
const maxFrameKeys = 1 << 14

// deltaKeyMemory is what a changed key takes, in bytes: an entry of a map that has just grown.
const deltaKeyMemory = 48

var (
	errFilter = errors.New("malformed have-set")
	errNoRoom = errors.New("no memory left for this have-set")
)

// haveSet is what a peer says it has: a filter and what changed since. It errs only in claiming: about
// one absent key in 65,000 seems present. Safe for concurrent use; the lock guards all fields.
type haveSet struct {
	mu      sync.RWMutex
	on      bool                          // a snapshot came and was not dropped since
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

// size returns the memory that the set takes, in bytes.
func (s *haveSet) size() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := int64(len(s.added)+len(s.removed)) * deltaKeyMemory
	if s.filter != nil {
		n += 2 * int64(len(s.filter.Fingerprints))
	}
	return n
}

// replace installs a snapshot; a nil filter is an empty set.
func (s *haveSet) replace(f *xorfilter.BinaryFuse[uint16], count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on, s.filter, s.count, s.added, s.removed = true, f, count, nil, nil
}

// clear makes the set claim nothing and ignore changes until the next snapshot.
func (s *haveSet) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on, s.filter, s.count, s.added, s.removed = false, nil, 0, nil, nil
}

// apply takes over a delta.
func (s *haveSet) apply(added, removed []uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return nil
	}
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

// parseHeader checks everything that [xorfilter.BinaryFuse.Contains] relies on, so that a hostile
// filter cannot index outside its fingerprints: three of them are looked up, in three segments in a
// row that begin below SegmentCountLength. It returns a filter without its n fingerprints.
func parseHeader(b []byte) (f *xorfilter.BinaryFuse[uint16], count, n int, err error) {
	le := binary.LittleEndian
	keys, seed := le.Uint64(b), le.Uint64(b[8:])
	segment, starts, total := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
	if total > maxFingerprints || keys > uint64(total) {
		return nil, 0, 0, fmt.Errorf("%w: %d keys in %d fingerprints", errFilter, keys, total)
	}
	if total == 0 {
		return nil, 0, 0, nil
	}
	if segment == 0 || segment&(segment-1) != 0 || starts == 0 || starts%segment != 0 ||
		uint64(starts)+2*uint64(segment) != uint64(total) {
		return nil, 0, 0, fmt.Errorf("%w: segments of %d, %d, %d fingerprints", errFilter, segment, starts, total)
	}
	return &xorfilter.BinaryFuse[uint16]{
		Seed: seed, SegmentLength: segment, SegmentLengthMask: segment - 1,
		SegmentCount: starts / segment, SegmentCountLength: starts,
	}, int(keys), int(total), nil
}

// readSnapshot reads a snapshot of size bytes. It allocates only what room, asked for a number of bytes,
// grants; else it returns errNoRoom, with the fingerprints still unread. The filter is nil for an empty set.
func readSnapshot(r io.Reader, size int64, room func(int64) bool) (*xorfilter.BinaryFuse[uint16], int, error) {
	if size < snapshotHeader {
		return nil, 0, fmt.Errorf("%w: %d bytes", errFilter, size)
	}
	buf := make([]byte, 32<<10)
	if _, err := io.ReadFull(r, buf[:snapshotHeader]); err != nil {
		return nil, 0, err
	}
	f, count, n, err := parseHeader(buf)
	if err != nil {
		return nil, 0, err
	}
	if size-snapshotHeader != 2*int64(n) {
		return nil, 0, fmt.Errorf("%w: %d fingerprints in %d bytes", errFilter, n, size-snapshotHeader)
	}
	if n == 0 {
		return nil, 0, nil
	}
	if !room(2 * int64(n)) {
		return nil, 0, errNoRoom
	}
	f.Fingerprints = make([]uint16, 0, n)
	for len(f.Fingerprints) < n {
		part := buf[:min(len(buf), 2*(n-len(f.Fingerprints)))]
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, 0, err
		}
		for i := 0; i < len(part); i += 2 {
			f.Fingerprints = append(f.Fingerprints, binary.LittleEndian.Uint16(part[i:]))
		}
	}
	return f, count, nil
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

// deltaStep is how many keys of a delta are read at once: one that does not come takes little memory.
const deltaStep = 512

// readDelta reads a delta of size bytes and hands its keys over as they come, all added ones first.
func readDelta(r *bufio.Reader, size int64, take func(added, removed []uint64) error) error {
	head, err := r.Peek(int(min(size, 2*binary.MaxVarintLen64)))
	if err != nil {
		return err
	}
	na, i := binary.Uvarint(head)
	nr, j := binary.Uvarint(head[max(i, 0):])
	if i <= 0 || j <= 0 || na > maxFrameKeys || nr > maxFrameKeys || uint64(size) != uint64(i+j)+8*(na+nr) {
		return fmt.Errorf("%w: delta of %d and %d keys in %d bytes", errFilter, na, nr, size)
	}
	r.Discard(i + j)
	var buf [8 * deltaStep]byte
	var keys [deltaStep]uint64
	for na+nr > 0 {
		left, added := &nr, na > 0
		if added {
			left = &na
		}
		n := min(*left, deltaStep)
		if _, err := io.ReadFull(r, buf[:8*n]); err != nil {
			return err
		}
		for k := range n {
			keys[k] = binary.LittleEndian.Uint64(buf[8*k:])
		}
		if added {
			err = take(keys[:n], nil)
		} else {
			err = take(nil, keys[:n])
		}
		if err != nil {
			return err
		}
		*left -= n
	}
	return nil
}
