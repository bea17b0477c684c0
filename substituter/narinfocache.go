package substituter

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"golang.org/x/sys/unix"

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
	sweepWrites  = 4096 // after so many the cache is looked at before its time
	blockSize    = 4096 // bytes that a small file takes on most disks
)

const (
	fromPeer   = "peer"
	absentLine = "absent\n"
)

// narInfoCache keeps narinfos on disk, one small file each, so that a restart or a lost uplink loses
// none. Entries are texts to be verified again when read: damage costs a question, not safety.
// A file holds the line "from <upstream URL or peer>" and the narinfo, or the line "absent".
type narInfoCache struct {
	dir   string // "" disables the cache
	log   *slog.Logger
	queue chan cacheWrite
	now   func() time.Time
	most  int64 // bytes on disk; beyond, what was not used for the longest time goes
	full  rate.Sometimes
}

type cacheWrite struct {
	h    verify.StoreHash
	text string
}

func newNarInfoCache(dir string, most int64, now func() time.Time, log *slog.Logger) *narInfoCache {
	return &narInfoCache{dir: dir, most: most, log: log, now: now, queue: make(chan cacheWrite, writeQueue), full: rate.Sometimes{Interval: time.Minute}}
}

func (c *narInfoCache) file(h verify.StoreHash) string {
	name := h.String()
	return filepath.Join(c.dir, name[:2], name+".narinfo")
}

// cached is an entry: a narinfo's text and its origin, or a fresh "absent".
type cached struct {
	text, from string
	absent     bool
}

// get returns a usable entry; ok is false if there is none.
func (c *narInfoCache) get(h verify.StoreHash) (e cached, ok bool) {
	if c.dir == "" {
		return e, false
	}
	file := c.file(h)
	b, err := os.ReadFile(file)
	if err != nil || len(b) > verify.MaxNarInfo {
		return e, false
	}
	info, err := os.Stat(file)
	if err != nil {
		return e, false
	}
	age := c.now().Sub(info.ModTime())
	if string(b) == absentLine {
		return cached{absent: true}, age >= 0 && age < keepNegative
	}
	line, text, _ := strings.Cut(string(b), "\n")
	from, ok := strings.CutPrefix(line, "from ")
	if !ok {
		return e, false
	}
	if age > touchAfter {
		now := c.now()
		os.Chtimes(file, now, now)
	}
	return cached{text: text, from: from}, true
}

// put stores a verified narinfo's text soon.
func (c *narInfoCache) put(h verify.StoreHash, from, text string) {
	c.enqueue(cacheWrite{h: h, text: "from " + from + "\n" + text})
}

// putAbsent stores that every upstream said it does not have h.
func (c *narInfoCache) putAbsent(h verify.StoreHash) {
	c.enqueue(cacheWrite{h: h, text: absentLine})
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

// drop forgets one entry.
func (c *narInfoCache) drop(h verify.StoreHash) {
	if c.dir != "" {
		os.Remove(c.file(h))
	}
}

// run writes entries and clears out old ones until ctx ends; then it writes what is queued.
func (c *narInfoCache) run(ctx context.Context) error {
	if c.dir == "" {
		<-ctx.Done()
		return nil
	}
	c.sweep(ctx)
	tick := time.NewTicker(janitorEvery)
	defer tick.Stop()
	for written := 1; ; written++ {
		if written%sweepWrites == 0 {
			c.sweep(ctx)
		}
		select {
		case w := <-c.queue:
			c.awaitLull(ctx)
			c.write(w)
			c.drain()
		case <-tick.C:
			c.sweep(ctx)
		case <-ctx.Done():
			c.drain()
			return nil
		}
	}
}

// awaitLull waits for a moment without news: Nix asks hundreds of questions in a row, a file costs as much
// as two answers, and the answers come first.
func (c *narInfoCache) awaitLull(ctx context.Context) {
	for n := -1; n != len(c.queue) && len(c.queue) < writeQueue/2; {
		n = len(c.queue)
		select {
		case <-time.After(writePause):
		case <-ctx.Done():
			return
		}
	}
}

// drain writes what is queued.
func (c *narInfoCache) drain() {
	for {
		select {
		case w := <-c.queue:
			c.write(w)
		default:
			return
		}
	}
}

// write puts an entry in place with as few system calls as can be, neither synced nor renamed: what is
// read half written, or after a power cut, does not verify and is only a question more.
func (c *narInfoCache) write(w cacheWrite) {
	file := c.file(w.h)
	err := writeFile(file, w.text)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
			err = writeFile(file, w.text)
		}
	}
	if err != nil {
		c.log.Warn("a narinfo could not be cached; is the state directory's disk full?", "err", err)
	}
}

// writeFile is os.WriteFile without its attempt to make the file pollable.
func writeFile(file, text string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	if n, err := unix.Write(fd, []byte(text)); err != nil || n < len(text) {
		return &fs.PathError{Op: "write", Path: file, Err: cmp.Or(err, io.ErrShortWrite)}
	}
	return nil
}

// sweep removes entries that are too old and, while there are too many, those whose use lies back
// furthest, to a day.
func (c *narInfoCache) sweep(ctx context.Context) {
	var kept []time.Duration // ages
	c.remove(ctx, func(age time.Duration, absent bool) bool {
		old := age > keepPositive || absent && age > keepNegative
		if !old {
			kept = append(kept, age)
		}
		return old
	})
	most := int(c.most / blockSize)
	if len(kept) <= most {
		return
	}
	slices.Sort(kept)
	limit := kept[most*7/8] // some more than need be, so that the next entry is not the next sweep
	c.remove(ctx, func(age time.Duration, _ bool) bool { return age >= limit })
}

// clear forgets the negative entries, or all of them, and counts them.
func (c *narInfoCache) clear(all bool) (positive, negative int, err error) {
	return c.remove(context.Background(), func(_ time.Duration, absent bool) bool { return all || absent })
}

// remove deletes the entries that match and counts them.
func (c *narInfoCache) remove(ctx context.Context, match func(age time.Duration, absent bool) bool) (positive, negative int, err error) {
	if c.dir == "" {
		return 0, 0, nil
	}
	err = filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ctx.Err()
		}
		info, err := d.Info()
		if err != nil {
			return nil // it is gone already
		}
		absent := info.Size() == int64(len(absentLine))
		if !match(c.now().Sub(info.ModTime()), absent) {
			return ctx.Err()
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if absent {
			negative++
		} else {
			positive++
		}
		return ctx.Err()
	})
	return positive, negative, err
}
