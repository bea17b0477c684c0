package substituter

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/verify"
)

// Lifetimes of cached narinfos.
const (
	// A positive answer is signed and does not change. Nix itself remembers it for 30 days and may ask
	// for its NAR that late, so it is kept longer than that since its last use.
	keepPositive = 40 * 24 * time.Hour
	// A negative answer is short-lived: Nix keeps its own for an hour, and a new path appears any time.
	keepNegative = 5 * time.Minute

	touchAfter   = 24 * time.Hour // refresh a used entry's age at most that often
	janitorEvery = 6 * time.Hour
	writeQueue   = 4096 // narinfos waiting for the disk, some 1 KiB each; more are not cached
	writePause   = 50 * time.Millisecond
	writeSize    = 64 << 10 // bytes of records in one write, or a little more
	wasteOK      = 4 << 20  // bytes; a smaller file is not worth a rewrite, whatever is in it
)

const (
	fromPeer   = "peer"
	absentBody = "absent\n"
)

// narInfoCache keeps narinfos on disk, so that a restart or a lost uplink loses none. Entries are texts to
// be verified again when read: damage costs a question, not safety.
//
// They lie in one file, to which records are only ever appended; an index in memory says where the last
// of each path is, so that not to have one costs nothing. A record is, little endian: CRC-32C of what
// follows it, 4 bytes; length of the body, 4; seconds since 1970, 8; the store hash, 20; the body. A body is
// the line "from <upstream URL or peer>" and the narinfo, or the line "absent", or empty for an entry that
// was dropped. Nothing is synced: what a power cut leaves torn ends the file. When much of the file is of
// no use any more, or it has grown to half of its room, what is worth it is copied to a new one, the least
// recently used left out. Two agents at once, as while one takes over from the other, lose entries at most.
type narInfoCache struct {
	dir   string // "" disables the cache
	log   *slog.Logger
	queue chan cacheWrite
	now   func() time.Time
	most  int64 // bytes on disk, the copy included
	full  rate.Sometimes

	loaded chan struct{} // closed once the index is there

	writing sync.Mutex   // held by whoever changes the file
	mu      sync.RWMutex // guards all below; taken after writing
	file    *os.File     // nil: the cache could not be opened
	index   map[verify.StoreHash]place
	size    int64 // of the file, bytes
}

// place is where a record's body is.
type place struct {
	off    int64
	at     int64 // when it was last used, to a day; seconds since 1970
	length uint32
	absent bool
}

type cacheWrite struct {
	h    verify.StoreHash
	body string
}

const recordHead = 4 + 4 + 8 + len(verify.StoreHash{})

// maxBody, bytes: a narinfo and the URL it is from.
const maxBody = verify.MaxNarInfo + 16<<10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newNarInfoCache(dir string, most int64, now func() time.Time, log *slog.Logger) *narInfoCache {
	return &narInfoCache{
		dir: dir, most: most, log: log, now: now, queue: make(chan cacheWrite, writeQueue), full: rate.Sometimes{Interval: time.Minute},
		loaded: make(chan struct{}), index: map[verify.StoreHash]place{},
	}
}

// cached is an entry: a narinfo's text and its origin, or a fresh "absent".
type cached struct {
	text, from string
	absent     bool
}

// get returns a usable entry; ok is false if there is none. It waits for run to have loaded the index.
func (c *narInfoCache) get(h verify.StoreHash) (e cached, ok bool) {
	if c.dir == "" {
		return e, false
	}
	<-c.loaded
	p, body, ok := c.read(h)
	if !ok {
		return e, false
	}
	age := c.now().Sub(time.Unix(p.at, 0))
	if p.absent {
		return cached{absent: true}, age >= 0 && age < keepNegative
	}
	line, text, _ := strings.Cut(body, "\n")
	from, ok := strings.CutPrefix(line, "from ")
	if !ok {
		return e, false
	}
	if age > touchAfter {
		c.enqueue(cacheWrite{h, body})
	}
	return cached{text: text, from: from}, true
}

// read returns the record of h, if there is one and it is whole.
func (c *narInfoCache) read(h verify.StoreHash) (p place, body string, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if p, ok = c.index[h]; !ok || p.absent {
		return p, "", ok
	}
	b := make([]byte, recordHead+int(p.length))
	if _, err := c.file.ReadAt(b, p.off-int64(recordHead)); err != nil {
		return p, "", false
	}
	got, of, _ := parseHead(b)
	return p, string(b[recordHead:]), of == h && got.length == p.length && intact(b)
}

// put stores a verified narinfo's text soon.
func (c *narInfoCache) put(h verify.StoreHash, from, text string) {
	c.enqueue(cacheWrite{h, "from " + from + "\n" + text})
}

// putAbsent stores that every upstream said it does not have h.
func (c *narInfoCache) putAbsent(h verify.StoreHash) {
	c.enqueue(cacheWrite{h, absentBody})
}

// drop forgets one entry.
func (c *narInfoCache) drop(h verify.StoreHash) {
	c.mu.Lock()
	delete(c.index, h)
	c.mu.Unlock()
	c.enqueue(cacheWrite{h: h})
}

func (c *narInfoCache) enqueue(w cacheWrite) {
	if c.dir == "" {
		return
	}
	select {
	case c.queue <- w:
	default: // the disk is too slow; the answer is not lost, only its copy
	}
}

// run loads the index, then writes entries and clears out old ones until ctx ends; then it writes what is
// queued.
func (c *narInfoCache) run(ctx context.Context) error {
	if c.dir == "" {
		<-ctx.Done()
		return nil
	}
	if err := c.load(); err != nil {
		c.log.Warn("cached narinfos cannot be read; is the state directory writable?", "err", err)
	}
	close(c.loaded)
	defer c.close()
	tick := time.NewTicker(janitorEvery)
	defer tick.Stop()
	for {
		select {
		case w := <-c.queue:
			select { // Nix asks hundreds of questions in a row: one write for many, and not while it waits
			case <-time.After(writePause):
			case <-ctx.Done():
			}
			c.write(w)
		case <-tick.C:
			c.forgetOld()
		case <-ctx.Done():
			select {
			case w := <-c.queue:
				c.write(w)
			default:
			}
			return nil
		}
		if err := c.compactIfDue(); err != nil {
			c.full.Do(func() {
				c.log.Warn("cached narinfos could not be copied; is the state directory's disk full?", "err", err)
			})
		}
	}
}

func (c *narInfoCache) path() string { return filepath.Join(c.dir, "log") }

// load opens the file and reads its index. What else is in the directory is of another version or was
// interrupted.
func (c *narInfoCache) load() error {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() != filepath.Base(c.path()) {
			os.RemoveAll(filepath.Join(c.dir, n.Name()))
		}
	}
	f, err := os.OpenFile(c.path(), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := bufio.NewReaderSize(f, 256<<10)
	buf := make([]byte, recordHead, 4<<10)
	for {
		buf = buf[:recordHead]
		if _, err := io.ReadFull(r, buf); err != nil {
			break
		}
		p, h, ok := parseHead(buf)
		if !ok {
			break
		}
		buf = slices.Grow(buf, int(p.length))[:recordHead+int(p.length)]
		if _, err := io.ReadFull(r, buf[recordHead:]); err != nil || !intact(buf) {
			break
		}
		c.note(h, p, c.size, string(buf[recordHead:]) == absentBody)
		c.size += int64(len(buf))
	}
	c.file = f
	if info, err := f.Stat(); err != nil || info.Size() == c.size {
		return err
	}
	return f.Truncate(c.size) // torn: nothing after it would be found again
}

// note puts a record that begins at start into the index. mu is held.
func (c *narInfoCache) note(h verify.StoreHash, p place, start int64, absent bool) {
	if p.length == 0 {
		delete(c.index, h)
		return
	}
	p.off, p.absent = start+int64(recordHead), absent
	c.index[h] = p
}

// close ends the use of the file.
func (c *narInfoCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		c.file.Close()
	}
	clear(c.index)
}

func appendRecord(b []byte, w cacheWrite, at int64) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(w.body)))
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = append(append(b, w.h[:]...), w.body...)
	binary.LittleEndian.PutUint32(b[start:], crc32.Checksum(b[start+4:], castagnoli))
	return b
}

// parseHead reads a record's head; ok is false if it cannot be one.
func parseHead(b []byte) (p place, h verify.StoreHash, ok bool) {
	p.length = binary.LittleEndian.Uint32(b[4:])
	p.at = int64(binary.LittleEndian.Uint64(b[8:]))
	copy(h[:], b[16:])
	return p, h, p.length <= maxBody
}

func intact(record []byte) bool {
	return binary.LittleEndian.Uint32(record) == crc32.Checksum(record[4:], castagnoli)
}

// write appends w and what else is queued.
func (c *narInfoCache) write(w cacheWrite) {
	c.writing.Lock()
	defer c.writing.Unlock()
	at := c.now().Unix()
	var b []byte
	var batch []cacheWrite
	for more := true; more; {
		b, batch = appendRecord(b, w, at), append(batch, w)
		select {
		case w = <-c.queue:
		default:
			more = false
		}
		if len(b) >= writeSize || !more {
			if err := c.append(b, batch, at); err != nil {
				c.full.Do(func() { c.log.Warn("narinfos could not be cached; is the state directory's disk full?", "err", err) })
			}
			b, batch = b[:0], batch[:0]
		}
	}
}

// append writes records and notes where they are. writing is held.
func (c *narInfoCache) append(b []byte, batch []cacheWrite, at int64) error {
	if c.file == nil {
		return nil // that was told already
	}
	_, err := c.file.Write(b)
	end, serr := c.file.Seek(0, io.SeekCurrent)
	if err = cmp.Or(err, serr); err != nil {
		if terr := c.file.Truncate(c.size); terr != nil { // part of a record would hide all after it
			return terr
		}
		return err
	}
	start := end - int64(len(b)) // another agent may have written too
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range batch {
		c.note(w.h, place{at: at, length: uint32(len(w.body))}, start, w.body == absentBody)
		start += int64(recordHead + len(w.body))
	}
	c.size = end
	return nil
}

// old tells whether an entry's time is over.
func (c *narInfoCache) old(p place) bool {
	age := c.now().Sub(time.Unix(p.at, 0))
	return age > keepPositive || p.absent && age > keepNegative
}

// forgetOld removes what is too old from the index.
func (c *narInfoCache) forgetOld() { c.forget(c.old) }

// forget removes entries from the index and counts them.
func (c *narInfoCache) forget(match func(place) bool) (positive, negative int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, p := range c.index {
		switch {
		case !match(p):
			continue
		case p.absent:
			negative++
		default:
			positive++
		}
		delete(c.index, h)
	}
	return positive, negative
}

// clear forgets the negative entries, or all of them, and counts them.
func (c *narInfoCache) clear(all bool) (positive, negative int, err error) {
	if c.dir == "" {
		return 0, 0, nil
	}
	<-c.loaded
	c.writing.Lock()
	defer c.writing.Unlock()
	positive, negative = c.forget(func(p place) bool { return all || p.absent })
	return positive, negative, c.compact()
}

// compactIfDue copies what is worth it when the file has grown too large, or most of it is of no use.
func (c *narInfoCache) compactIfDue() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.size <= min(wasteOK, c.most/2) {
		return nil
	}
	live := int64(0)
	c.mu.RLock()
	for _, p := range c.index {
		live += int64(recordHead) + int64(p.length)
	}
	c.mu.RUnlock()
	if c.size <= c.most/2 && live >= c.size/2 {
		return nil
	}
	return c.compact()
}

// compact copies the newest live entries to a new file. writing is held; questions go on meanwhile.
func (c *narInfoCache) compact() error {
	if c.file == nil {
		return nil
	}
	c.forgetOld()
	type entry struct {
		h verify.StoreHash
		place
	}
	var list []entry // the last written last, which is also the last used
	c.mu.RLock()
	for h, p := range c.index {
		list = append(list, entry{h, p})
	}
	c.mu.RUnlock()
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.off, b.off) })
	room := c.most * 3 / 8 // some less than makes it due, so that the next entry is not the next copy
	first := len(list)
	for ; first > 0; first-- {
		if room -= int64(recordHead) + int64(list[first-1].length); room < 0 {
			break
		}
	}
	f, err := os.OpenFile(c.path()+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	moved := make(map[verify.StoreHash]place, len(list)-first)
	at := int64(0)
	var buf []byte
	for _, e := range list[first:] {
		n := recordHead + int(e.length)
		buf = slices.Grow(buf[:0], n)[:n]
		if _, err = c.file.ReadAt(buf, e.off-int64(recordHead)); err != nil {
			break
		}
		if _, h, _ := parseHead(buf); h != e.h || !intact(buf) {
			continue // damaged since
		}
		if _, err = w.Write(buf); err != nil {
			break
		}
		p := e.place
		p.off = at + int64(recordHead)
		moved[e.h], at = p, at+int64(n)
	}
	err = cmp.Or(err, w.Flush(), f.Sync())
	if err == nil {
		err = os.Rename(f.Name(), c.path())
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for h := range moved {
		if _, ok := c.index[h]; !ok {
			delete(moved, h) // dropped meanwhile
		}
	}
	c.file.Close()
	c.file, c.index, c.size = f, moved, at
	return nil
}
