package p2ptest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/FastFilter/xorfilter"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/verify"
)

// haves is all that a peer ever said it has.
type haves struct {
	filters        []*xorfilter.BinaryFuse[uint16] // every snapshot, also those replaced since
	snapshots      int
	added, removed map[uint64]bool
}

func (r *Recorder) readHave(s network.Stream) {
	defer s.Reset()
	br := bufio.NewReader(s)
	for {
		n, err := binary.ReadUvarint(br)
		if err != nil || n == 0 || n > 64<<20 {
			return
		}
		frame := make([]byte, n)
		if _, err := io.ReadFull(br, frame); err != nil {
			return
		}
		if r.learn(s.Conn().RemotePeer(), frame[0], frame[1:]) != nil {
			return
		}
	}
}

func (r *Recorder) learn(id peer.ID, kind byte, body []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.tell()
	h := r.haves[id]
	if h == nil {
		h = &haves{added: map[uint64]bool{}, removed: map[uint64]bool{}}
		r.haves[id] = h
	}
	switch kind {
	case 2:
		f, err := parseFilter(body)
		if err != nil {
			return err
		}
		h.snapshots++
		if f != nil {
			h.filters = append(h.filters, f)
		}
	case 3:
		na, i := binary.Uvarint(body)
		nr, j := binary.Uvarint(body[max(i, 0):])
		keys := body[max(i, 0)+max(j, 0):]
		if uint64(len(keys)) != 8*(na+nr) {
			return errFrame
		}
		for k := range na + nr {
			key := binary.LittleEndian.Uint64(keys[8*k:])
			if k < na {
				h.added[key] = true
			} else {
				h.removed[key] = true
			}
		}
	}
	return nil
}

func parseFilter(b []byte) (*xorfilter.BinaryFuse[uint16], error) {
	le := binary.LittleEndian
	if len(b) < 28 || len(b) != 28+2*int(le.Uint32(b[24:])) {
		return nil, errFrame
	}
	if len(b) == 28 {
		return nil, nil
	}
	f := &xorfilter.BinaryFuse[uint16]{Seed: le.Uint64(b[8:]), SegmentLength: le.Uint32(b[16:]), SegmentCountLength: le.Uint32(b[20:])}
	f.SegmentLengthMask, f.SegmentCount = f.SegmentLength-1, f.SegmentCountLength/f.SegmentLength
	for i := 28; i < len(b); i += 2 {
		f.Fingerprints = append(f.Fingerprints, le.Uint16(b[i:]))
	}
	return f, nil
}

// Snapshots returns how many have-sets an agent sent.
func (r *Recorder) Snapshots(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, _ := peer.Decode(id)
	if h := r.haves[p]; h != nil {
		return h.snapshots
	}
	return 0
}

// Withdrawn tells whether a change that an agent sent took a path back.
func (r *Recorder) Withdrawn(id string, d verify.PathDigest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, _ := peer.Decode(id)
	h := r.haves[p]
	return h != nil && h.removed[d.Key()]
}

// EverClaimed tells whether any have-set or change that any agent sent named a path.
func (r *Recorder) EverClaimed(d verify.PathDigest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := d.Key()
	for _, h := range r.haves {
		if h.added[key] || h.removed[key] {
			return true
		}
		for _, f := range h.filters {
			if f.Contains(key) {
				return true
			}
		}
	}
	return false
}

// Claim tells an agent that this peer has paths, so that it asks for them. The stream stays open until
// ctx ends.
func (r *Recorder) Claim(ctx context.Context, id string, digests ...verify.PathDigest) error {
	s, err := r.Open(ctx, id, ProtoHave)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { s.Reset() })
	greeting, err := json.Marshal(map[string]any{"version": 1, "agent": "recorder", "store_dir": r.cfg.StoreDir})
	if err != nil {
		return err
	}
	var keys []uint64
	for _, d := range digests {
		keys = append(keys, d.Key())
	}
	snapshot, err := Snapshot(keys)
	if err != nil {
		return err
	}
	_, err = s.Write(append(Frame(1, greeting), Frame(2, snapshot)...))
	return err
}

// Frame is a frame of /flurry/have/1.
func Frame(kind byte, body []byte) []byte {
	return append(append(binary.AppendUvarint(nil, uint64(len(body)+1)), kind), body...)
}

// Snapshot is the body of a snapshot frame.
func Snapshot(keys []uint64) ([]byte, error) {
	if len(keys) == 0 {
		return make([]byte, 28), nil
	}
	f, err := xorfilter.NewBinaryFuse[uint16](keys)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, v := range []any{uint64(len(keys)), f.Seed, f.SegmentLength, f.SegmentCountLength, uint32(len(f.Fingerprints)), f.Fingerprints} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// Canary is a path to search what was recorded for. NAR and Name may be empty.
type Canary struct {
	Hash verify.StoreHash
	Name string // the part of the path after the hash, long enough not to occur by chance
	NAR  []byte // its bytes, or some that stand in it and nowhere else; 16 at least
}

// Search says in which ways a path occurs in what agents sent, empty if in none. What this recorder
// itself sent is not searched.
func (r *Recorder) Search(c Canary) []string {
	digest := c.Hash.Digest()
	key := digest.Key()
	needles := map[string][]byte{
		"store hash": []byte(c.Hash.String()), "digest text": []byte(digest.String()), "digest": digest[:],
		"key": binary.LittleEndian.AppendUint64(nil, key), "key, big-endian": binary.BigEndian.AppendUint64(nil, key),
	}
	if len(c.Name) >= 8 {
		needles["name"] = []byte(c.Name)
	}
	if len(c.NAR) >= 16 {
		needles["NAR bytes"] = c.NAR[:min(len(c.NAR), 64)]
		needles["NAR's last bytes"] = c.NAR[max(0, len(c.NAR)-64):]
	}
	var found []string
	received, _ := r.Messages()
	for i, m := range received {
		for what, needle := range needles {
			if bytes.Contains(m, needle) {
				found = append(found, fmt.Sprintf("%s in stream %d", what, i))
			}
		}
	}
	if r.EverClaimed(digest) {
		found = append(found, "have-set")
	}
	return found
}
