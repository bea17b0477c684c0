package store

import (
	"context"
	"errors"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/flurry-nix/flurry/internal/beat"
	"github.com/flurry-nix/flurry/verify"
)

const (
	// settle gathers the events of one commit, and of the next few, into one look.
	settle = 50 * time.Millisecond
	// maxPause bounds how long a look that took long (big stores) puts off the next one.
	maxPause = 500 * time.Millisecond
	// recheckInterval is how often rows known for long are compared with what was judged, for
	// signatures added or removed later (nix store sign), if the database was written meanwhile.
	recheckInterval = 15 * time.Minute
	// chunk is how many rows one read transaction looks at: some 10 ms.
	chunk = 4096
	// batch is how many rows are judged between two looks: some 10 ms of ed25519.
	batch = 128
	// largeStore is from how many paths on memory is given back after loading: some 100 bytes each.
	largeStore = 20_000
	// confirmTime: a path missing from an immutable read is believed gone when it still is after this.
	confirmTime = 800 * time.Millisecond
)

// runState belongs to Run's goroutine.
type runState struct {
	seen     stamp // the files at the last complete look
	again    bool  // look even if the stamp is the same
	anew     bool  // ids no longer name the paths they did
	loaded   bool
	file     fileStamp // identity of the database file that the index is of
	logged   string
	missing  time.Time // since when an immutable read lacks rows
	below    int64     // recheck: rows with ids below this are still to come, 0 when done
	written  bool      // since the last recheck began
	nextPass time.Time
	recheck  time.Duration
	passFrom stamp       // the files when the present pass over all rows began; zero: there is none
	compared stamp       // and when the last complete one began: while they are so, all rows are as judged
	judged   bool        // the file of verdicts is behind
	saved    time.Time   // when it was written
	onLook   func(error) // tests: called after every look
}

// Run loads the database, watches it and tells subscribers, until ctx ends; then it returns nil. Trouble
// with the database is retried and told by Stats; what was known stays known meanwhile. Call it once.
func (s *Store) Run(ctx context.Context) error {
	if s.db == nil {
		<-ctx.Done()
		return nil
	}
	s.db.keepIdle(true)
	defer s.db.keepIdle(false)
	w := newWatcher(filepath.Dir(s.db.path))
	defer w.close()
	if s.run.recheck == 0 {
		s.run.recheck = recheckInterval
	}
	s.run.saved = time.Now()
	s.run.nextPass = s.run.saved.Add(s.run.recheck)
	defer s.remember(true)
	var err error
	var looked time.Time
	var gather time.Duration
	settled := false
	for busy := false; ctx.Err() == nil; {
		began := time.Now()
		if !busy || began.Sub(looked) >= gather { // looking must not slow checking down
			err = s.look(ctx)
			if ctx.Err() != nil {
				break
			}
			looked = time.Now()
			gather = min(settle+10*looked.Sub(began), maxPause)
			s.report(err)
			s.readyOnce.Do(func() { close(s.ready) })
		}
		was := busy || !settled
		busy = err == nil && s.check(ctx)
		s.remember(false)
		if settled = !busy; was && settled && len(s.idx.recs) > largeStore {
			debug.FreeOSMemory() // what loading and checking took, for the hours of idling that follow
		}
		s.db.reap(time.Now().Add(-idleTime))
		pause := beat.Next() // when inotify is silent; with the work that follows it keeps what memory knows within two seconds
		if busy {
			// Half of one core at most, and less on a machine that is busy, where the same work takes longer.
			pause = max(time.Since(began), time.Millisecond)
		}
		w.wait(ctx, pause, gather)
	}
	return nil
}

// report keeps the trouble for Stats and logs it when it changes.
func (s *Store) report(err error) {
	s.mu.Lock()
	s.trouble = err
	s.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err != nil {
		s.db.reap(time.Time{}) // what is wrong must not be hidden by a connection from before
	}
	if text != s.run.logged {
		if err != nil {
			s.log.Warn("the Nix store's database cannot be read; serving what is known", "err", err)
		} else {
			s.log.Info("the Nix store's database can be read again")
		}
		s.run.logged = text
	}
	if s.run.onLook != nil {
		s.run.onLook(err)
	}
}

// look brings the index up to date if the files have changed.
func (s *Store) look(ctx context.Context) error {
	now := time.Now()
	st, err := takeStamp(s.db.path)
	if err != nil {
		return s.db.diagnose(err)
	}
	r := &s.run
	if r.loaded && !r.again && !r.anew && st.contents() == r.seen {
		return nil
	}
	r.again = true // unless all goes well
	r.written = true
	if id := (fileStamp{dev: st.db.dev, ino: st.db.ino}); r.file != id || r.anew {
		if r.loaded {
			s.log.Info("the Nix store's database was replaced; reading it anew")
			if err := s.rescan(ctx, false); err != nil {
				return err
			}
		}
		r.file, r.anew = id, false
		r.compared, r.passFrom = stamp{}, stamp{}
	}
	if err := s.db.probe(ctx); err != nil {
		return err
	}
	complete, err := s.sync(ctx)
	if err != nil {
		return err
	}
	if !r.loaded {
		s.recall(st.contents())
	}
	r.loaded = true
	r.seen, r.again = st.contents(), !complete || st.recent(now)
	return nil
}

// sync reads the rows after the last known one, and all ids if the number of rows then does not fit.
// It returns false if rows seem gone but that needs confirmation.
func (s *Store) sync(ctx context.Context) (complete bool, err error) {
	for {
		p, err := s.db.paths(ctx, s.idx.lastID(), chunk)
		if err != nil {
			return false, err
		}
		s.mu.Lock()
		for _, r := range p.rows {
			s.idx.add(s.dir, r)
		}
		s.mu.Unlock()
		if p.count < 0 {
			continue
		}
		gone := len(s.idx.recs) - p.count
		if gone == 0 {
			s.run.missing = time.Time{}
			return true, nil
		}
		if gone > 0 && p.access == AccessImmutable {
			// A checkpoint that stopped half-way shows as missing rows.
			if s.run.missing.IsZero() {
				s.run.missing = time.Now()
			}
			if time.Since(s.run.missing) < confirmTime {
				return false, nil
			}
		}
		s.run.missing = time.Time{}
		return true, s.rescan(ctx, true)
	}
}

// rescan reads all ids and paths into a new index. Unless keep is set, every path has to be judged anew.
// Only Run's goroutine changes s.idx, so it may read it without the lock.
func (s *Store) rescan(ctx context.Context, keep bool) error {
	fresh := newIndex(len(s.idx.recs))
	for {
		p, err := s.db.paths(ctx, fresh.lastID(), chunk)
		if err != nil {
			return err
		}
		for _, r := range p.rows {
			fresh.add(s.dir, r)
		}
		if p.count >= 0 {
			break
		}
	}
	c := Change{Removed: s.idx.everything()}
	if keep {
		c = fresh.inherit(s.idx)
	}
	s.mu.Lock()
	s.idx = fresh
	s.mu.Unlock()
	s.tell(c)
	return nil
}

// check judges some unchecked paths, or compares some known ones with their rows if that is due, and
// returns whether there is more to do.
func (s *Store) check(ctx context.Context) (more bool) {
	const top = 1<<63 - 1
	r := &s.run
	lo, hi, ok := s.idx.nextUnchecked(top, batch)
	if !ok && r.below == 0 {
		if r.passFrom != (stamp{}) { // it is complete
			r.compared, r.passFrom = r.passFrom, stamp{}
			r.judged, r.saved = true, time.Time{} // to be kept at once
			r.written = r.written && r.compared != r.seen
		}
		if time.Now().Before(r.nextPass) {
			return false
		}
		r.nextPass = time.Now().Add(r.recheck)
		if !r.written {
			return false
		}
		r.written, r.below, r.passFrom = false, top, r.seen
	}
	if !ok {
		last := s.idx.byID(r.below) - 1
		if last < 0 {
			r.below = 0
			return false
		}
		lo, hi = s.idx.recs[max(0, last-batch+1)].id, s.idx.recs[last].id
	}
	if err := s.judge(ctx, lo, hi); err != nil {
		r.again = true
		s.log.Debug("signatures could not be checked", "err", err)
		return false
	}
	if !ok {
		r.below = lo
	}
	return true
}

// judge decides how far the paths with ids from lo to hi may travel.
func (s *Store) judge(ctx context.Context, lo, hi int64) error {
	rows, err := s.db.infos(ctx, lo, hi)
	if err != nil {
		return err
	}
	found := make(map[int64]verdict, len(rows))
	sums := summer{key: s.sumKey}
	for i := range rows {
		row := &rows[i]
		j := s.idx.byID(row.id)
		if j == len(s.idx.recs) || s.idx.recs[j].id != row.id {
			continue // newer than the index; its turn comes
		}
		rec := &s.idx.recs[j]
		v := verdict{scope: rec.scope, sum: sums.sum(row)}
		if rec.state != malformed && rec.hash != hashIn(row.path) {
			s.run.anew = true // another database in the same file
		}
		if rec.state != checked || rec.sum != v.sum {
			v.scope = s.scopeOf(rec, row)
			s.run.judged = true
		}
		found[row.id] = v
	}
	var c Change
	s.mu.Lock()
	for i := s.idx.byID(lo); i < len(s.idx.recs) && s.idx.recs[i].id <= hi; i++ {
		rec := &s.idx.recs[i]
		v := found[rec.id] // none: the row is gone, which the next look finds
		s.idx.judge(rec, v.scope, v.sum, &c)
	}
	s.mu.Unlock()
	s.tell(c)
	return nil
}

// scopeOf decides by the row's own signatures.
func (s *Store) scopeOf(rec *record, row *infoRow) verify.Scope {
	n, err := row.narInfo(s.dir)
	if err != nil || n.StorePath.Hash() != rec.hash {
		return verify.ScopeNone
	}
	return s.keys.ScopeOf(n)
}

// watcher wakes Run when something in the database's directory changes, if the kernel lets it.
type watcher struct {
	dir string
	fs  *fsnotify.Watcher // nil: polling only
}

func newWatcher(dir string) *watcher {
	w := &watcher{dir: dir}
	w.fs, _ = fsnotify.NewWatcher()
	return w
}

func (w *watcher) close() {
	if w.fs != nil {
		w.fs.Close()
	}
}

// wait returns after pause, or earlier but not before gather has passed since an event, or when ctx ends.
func (w *watcher) wait(ctx context.Context, pause, gather time.Duration) {
	var events <-chan fsnotify.Event
	var problems <-chan error
	if w.fs != nil {
		if len(w.fs.WatchList()) == 0 {
			_ = w.fs.Add(w.dir) // the directory may come later; polling goes on meanwhile
		}
		events, problems = w.fs.Events, w.fs.Errors
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	woken := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case err := <-problems:
			if errors.Is(err, fsnotify.ErrClosed) {
				problems = nil
			}
		case <-events:
			if !woken && gather < pause {
				timer.Reset(gather)
			}
			woken = true
		}
	}
}
