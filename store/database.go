package store

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// Access says how the database is being read.
type Access uint8

const (
	// AccessNone: not at all.
	AccessNone Access = iota
	// AccessReadOnly: with SQLite's locks and the write-ahead log, as another process beside Nix.
	AccessReadOnly
	// AccessImmutable: the file alone, as an unprivileged user must while no Nix process has it open.
	AccessImmutable
)

// String returns "none", "read-only" or "immutable".
func (a Access) String() string { return [...]string{"none", "read-only", "immutable"}[a] }

const (
	// busyTimeout: Nix's own commits take milliseconds; whoever holds the file longer means it.
	busyTimeout = 300 * time.Millisecond
	// idleTime is how long an unused connection stays open. An open one keeps the last Nix process
	// that ends from writing the log back into the database.
	idleTime = time.Second
	// maxIdle bounds open, unused connections, each some 100 KiB.
	maxIdle = 4
	// maxConns bounds connections in use; two cores are busy with fewer.
	maxConns = 8
)

// database opens connections and keeps a few for a short while.
type database struct {
	path, dir string
	slots     chan struct{} // one taken per connection in use

	mu     sync.Mutex // guards what follows
	idle   []*conn
	pool   bool // idle connections are being reaped
	access Access
	stale  bool
}

// conn is one connection. An immutable one caches pages for ever, so it is good only as long as the
// file stays as its stamp says.
type conn struct {
	*sqlite.Conn
	access Access
	stamp  stamp
	fresh  bool // the stamp is exact
	since  time.Time
}

func newDatabase(path, dir string) *database {
	return &database{path: path, dir: dir, slots: make(chan struct{}, maxConns)}
}

func (d *database) lastAccess() (Access, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.access, d.stale
}

// read calls fn with a connection. fn may be called several times and must begin anew each time; its
// results count only if read returns nil. Errors are ctx's or a [*DatabaseError].
func (d *database) read(ctx context.Context, fn func(*conn) error) error {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	const attempts = 5 // 20+40+80+160 ms: an immutable read met a writer each time
	var err error
	for i := range attempts {
		if i > 0 {
			select {
			case <-time.After(10 * time.Millisecond << i):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var c *conn
		if c, err = d.get(); err != nil {
			break
		}
		err = c.use(ctx, fn)
		if ctx.Err() != nil {
			c.Close()
			return ctx.Err()
		}
		if c.access == AccessImmutable && d.torn(c) {
			c.Close()
			err = errTorn
			continue
		}
		if err == nil {
			d.note(c.access, c.access == AccessImmutable && c.stamp.wal.size > 0)
			d.put(c)
			return nil
		}
		c.Close()
		break
	}
	d.note(AccessNone, false)
	return d.diagnose(err)
}

func (c *conn) use(ctx context.Context, fn func(*conn) error) error {
	c.SetInterrupt(ctx.Done())
	defer c.SetInterrupt(nil)
	return fn(c)
}

// torn tells whether the file may have been written while an immutable connection read it.
func (d *database) torn(c *conn) bool {
	now, err := takeStamp(d.path)
	return err != nil || now.contents() != c.stamp.contents() || now.recent(time.Now())
}

func (d *database) get() (*conn, error) {
	st, err := takeStamp(d.path)
	if err != nil {
		return nil, err
	}
	for c := d.pop(); c != nil; c = d.pop() {
		if c.usable(st) {
			return c, nil
		}
		c.Close()
	}
	if err := d.checkSchema(); err != nil {
		return nil, err
	}
	c, err := d.open(st, AccessReadOnly)
	if needsImmutable(err) && st.journal == (fileStamp{}) {
		c, err = d.open(st, AccessImmutable)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *conn) usable(now stamp) bool {
	if c.access == AccessReadOnly {
		return c.stamp.db.dev == now.db.dev && c.stamp.db.ino == now.db.ino
	}
	return c.fresh && c.stamp == now
}

// open opens a connection and makes it read something: SQLite finds out only then.
func (d *database) open(st stamp, access Access) (*conn, error) {
	query := "mode=ro"
	if access == AccessImmutable {
		query = "immutable=1"
	}
	now := time.Now()
	uri := (&url.URL{Scheme: "file", Path: d.path, RawQuery: query}).String()
	raw, err := sqlite.OpenConn(uri, sqlite.OpenReadOnly|sqlite.OpenURI)
	if err != nil {
		return nil, err
	}
	raw.SetBusyTimeout(busyTimeout)
	c := &conn{Conn: raw, access: access, stamp: st, fresh: !st.recent(now)}
	if err := sqlitex.ExecuteTransient(raw, probeSQL, nil); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// needsImmutable tells whether err is what SQLite says when an unprivileged reader finds no usable
// -wal and -shm. Locks are not among it: immutable would ignore them.
func needsImmutable(err error) bool {
	if err == nil {
		return false
	}
	code := sqlite.ErrCode(err)
	return code.ToPrimary() == sqlite.ResultCantOpen ||
		code.ToPrimary() == sqlite.ResultReadOnly && code != sqlite.ResultReadOnlyRollback
}

// checkSchema reads the version that Nix keeps in a file beside the database. Without that file the
// columns decide.
func (d *database) checkSchema() error {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(d.path), "schema"))
	if err != nil {
		return nil
	}
	if v, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && v != schemaVersion {
		return d.wrongSchema(v)
	}
	return nil
}

func (d *database) pop() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle) == 0 {
		return nil
	}
	c := d.idle[len(d.idle)-1]
	d.idle = d.idle[:len(d.idle)-1]
	return c
}

func (d *database) put(c *conn) {
	c.since = time.Now()
	d.mu.Lock()
	keep := d.pool && len(d.idle) < maxIdle
	if keep {
		d.idle = append(d.idle, c)
	}
	d.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// keepIdle switches keeping connections on, for as long as reap is called, or off.
func (d *database) keepIdle(on bool) {
	d.mu.Lock()
	d.pool = on
	d.mu.Unlock()
	if !on {
		d.reap(time.Time{})
	}
}

// reap closes connections unused since before, all if before is zero.
func (d *database) reap(before time.Time) {
	d.mu.Lock()
	var old, kept []*conn
	for _, c := range d.idle {
		if before.IsZero() || c.since.Before(before) {
			old = append(old, c)
		} else {
			kept = append(kept, c)
		}
	}
	d.idle = kept
	d.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

func (d *database) note(a Access, stale bool) {
	d.mu.Lock()
	d.access, d.stale = a, stale
	d.mu.Unlock()
}
