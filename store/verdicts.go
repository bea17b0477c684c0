package store

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// Checking the signatures of a large store takes minutes of background work, so what came out is kept
// in a file of the agent's own. A verdict counts again only for the same keys, store directory and
// database file, and for a row of the same id and store hash; the row itself is compared with what was
// judged in the background, at once if the database was written since. A wrong verdict could at worst
// tell of a path: whoever serves verifies again.
//
// Format: magic, digest of what all verdicts depend on (32 bytes), digest of the database files' stamps
// when all rows were last compared (32 bytes), key of the sums (32 bytes), number of verdicts, then of each, in the order of ids: id − last id, first 8 bytes of the hash, sum, scope; at
// the end SHA-256 of all before, so that a torn or damaged file is no file. Numbers are uvarints but
// for hash and sum, which are 8 bytes each, big endian.
const verdictsMagic = "flurry verdicts 1\n"

// saveEvery bounds how often the file is written while signatures are being checked or change.
const saveEvery = time.Minute

// verdict is what is kept of a record.
type verdict struct {
	id        int64
	hash, sum uint64
	scope     verify.Scope
}

// sumKey makes records' sums meaningless, and their collisions unfindable, without it.
type sumKey [32]byte

func newSumKey() (k sumKey) {
	rand.Read(k[:])
	return k
}

// basis is a digest of what verdicts depend on besides the row.
func (s *Store) basis(id fileStamp) (out [32]byte) {
	h := sha256.New()
	keys := s.keys.Digest()
	h.Write(keys[:])
	fmt.Fprintf(h, "%q %d %d", s.dir, id.dev, id.ino)
	h.Sum(out[:0])
	return out
}

// digest names the contents of the database files.
func (st stamp) digest() (out [32]byte) { return sha256.Sum256(fmt.Appendf(nil, "%+v", st.contents())) }

// recall takes over the verdicts of an earlier process, after the index was loaded from files as now.
func (s *Store) recall(now stamp) {
	s.run.passFrom = now
	if s.verdicts == "" {
		return
	}
	list, head, err := readVerdicts(s.verdicts, s.basis(s.run.file))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Info("signatures are checked anew", "reason", err)
		}
		return
	}
	var c Change
	s.mu.Lock()
	s.sumKey = head.key
	for _, v := range list {
		i := s.idx.byID(v.id)
		if i == len(s.idx.recs) {
			break
		}
		if r := &s.idx.recs[i]; r.id == v.id && r.state == unchecked && spread(r.hash) == v.hash {
			s.idx.judge(r, v.scope, v.sum, &c)
		}
	}
	s.mu.Unlock()
	s.run.passFrom = stamp{} // what is still unchecked are not all rows
	if s.run.nextPass = time.Now(); head.stamp == now.digest() {
		s.run.compared, s.run.written = now, false
	}
	s.tell(c)
}

// remember writes the verdicts if there are new ones and it was not done just now; force does not wait.
func (s *Store) remember(force bool) {
	r := &s.run
	if s.verdicts == "" || !r.judged || !r.loaded || !force && time.Since(r.saved) < saveEvery {
		return
	}
	r.judged, r.saved = false, time.Now()
	if err := s.writeVerdicts(); err != nil {
		s.log.Warn("what the signatures' checks gave could not be kept; they are done again at the next start", "err", err)
	}
}

// writeVerdicts puts the file in place whole. Only Run's goroutine changes s.idx.
func (s *Store) writeVerdicts() (err error) {
	f, err := os.CreateTemp(filepath.Dir(s.verdicts), filepath.Base(s.verdicts)+".new-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if f.Close(); err != nil {
			os.Remove(f.Name())
		}
	}()
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 64<<10)
	basis := s.basis(s.run.file)
	w.WriteString(verdictsMagic)
	stamp := s.run.compared.digest()
	w.Write(basis[:])
	w.Write(stamp[:])
	w.Write(s.sumKey[:])
	n := 0
	for i := range s.idx.recs {
		if s.idx.recs[i].state == checked {
			n++
		}
	}
	w.Write(binary.AppendUvarint(nil, uint64(n)))
	var b []byte
	last := int64(0)
	for i := range s.idx.recs {
		r := &s.idx.recs[i]
		if r.state != checked {
			continue
		}
		b = binary.AppendUvarint(b[:0], uint64(r.id-last))
		b = binary.BigEndian.AppendUint64(b, spread(r.hash))
		b = binary.BigEndian.AppendUint64(b, r.sum)
		w.Write(append(b, byte(r.scope)))
		last = r.id
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := f.Write(sum.Sum(nil)); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.verdicts)
}

// maxVerdicts bounds the file, bytes: four million paths.
const maxVerdicts = 4 << 20 * 28

var errOtherBasis = errors.New("keys, store or database are others than at the last time")

// verdictsHead is what the file says of all verdicts.
type verdictsHead struct {
	stamp [32]byte
	key   sumKey
}

func readVerdicts(name string, basis [32]byte) (list []verdict, head verdictsHead, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, head, err
	}
	defer f.Close()
	var b bytes.Buffer
	if info, err := f.Stat(); err == nil {
		b.Grow(int(min(info.Size(), maxVerdicts)) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(io.LimitReader(f, maxVerdicts)); err != nil {
		return nil, head, err
	}
	all := b.Bytes()
	damaged := fmt.Errorf("%s is damaged", name)
	const headLen = len(verdictsMagic) + 3*32
	if len(all) < headLen+sha256.Size || !bytes.HasPrefix(all, []byte(verdictsMagic)) {
		return nil, head, damaged
	}
	all, end := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	if sum := sha256.Sum256(all); !bytes.Equal(sum[:], end) {
		return nil, head, damaged
	}
	rest := all[len(verdictsMagic):]
	if !bytes.Equal(rest[:32], basis[:]) {
		return nil, head, errOtherBasis
	}
	copy(head.stamp[:], rest[32:])
	copy(head.key[:], rest[64:])
	list, ok := parseVerdicts(rest[96:])
	if !ok {
		return nil, head, damaged
	}
	return list, head, nil
}

func parseVerdicts(rest []byte) (list []verdict, ok bool) {
	n, k := binary.Uvarint(rest)
	if k <= 0 || n > uint64(len(rest))/18 {
		return nil, false
	}
	rest = rest[k:]
	list = make([]verdict, n)
	last := int64(0)
	for i := range list {
		d, k := binary.Uvarint(rest)
		if k <= 0 || len(rest) < k+17 || verify.Scope(rest[k+16]) > verify.ScopePublic {
			return nil, false
		}
		last += int64(d)
		list[i] = verdict{last, binary.BigEndian.Uint64(rest[k:]), binary.BigEndian.Uint64(rest[k+8:]), verify.Scope(rest[k+16])}
		rest = rest[k+17:]
	}
	return list, true
}

// summer makes the sums of rows.
type summer struct {
	key sumKey
	buf []byte
}

// sum tells rows apart that could be judged differently.
func (m *summer) sum(r *infoRow) uint64 {
	b := append(m.buf[:0], m.key[:]...)
	b = binary.AppendVarint(b, r.id)
	b = binary.AppendVarint(b, r.narSize)
	for _, s := range []string{r.path, r.hash, r.deriver, r.sigs, r.ca, r.paths} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	m.buf = b
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}
