package dht

import (
	"context"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// maxRecords bounds what other agents' provider records may take here, about 300 bytes each. At a hundred
// thousand agents with 500 records each a node holds 10,000; see docs/scale.md.
const (
	maxRecords       = 200_000
	maxRecordsPerKey = 64
)

// recordStore is the datastore of other agents' provider records: bounded, in memory, and found by key
// without looking at all of them, which the library's in-memory store does. Records are short-lived hints,
// so that a restart may lose them; a full store drops any. mu guards the fields.
type recordStore struct {
	mu    sync.Mutex
	byKey map[string]map[string][]byte // "/providers/<key>" → "<peer>" → time
	n     int
}

var _ ds.Batching = (*recordStore)(nil)

func newRecordStore() *recordStore { return &recordStore{byKey: map[string]map[string][]byte{}} }

func split(k ds.Key) (dir, name string) {
	s := k.String()
	i := strings.LastIndexByte(s, '/')
	return s[:i], s[i+1:]
}

// Put implements [ds.Datastore].
func (r *recordStore) Put(_ context.Context, k ds.Key, value []byte) error {
	dir, name := split(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.byKey[dir]
	if _, known := m[name]; !known {
		if len(m) >= maxRecordsPerKey {
			r.dropOne(dir) // somebody may be making identities: the newcomer displaces any
		}
		for r.n >= maxRecords {
			r.dropAny()
		}
		if m = r.byKey[dir]; m == nil {
			m = map[string][]byte{}
			r.byKey[dir] = m
		}
		r.n++
	}
	m[name] = value
	return nil
}

func (r *recordStore) dropAny() {
	for dir := range r.byKey {
		r.dropOne(dir)
		return
	}
}

func (r *recordStore) dropOne(dir string) {
	for name := range r.byKey[dir] {
		r.drop(dir, name)
		return
	}
}

func (r *recordStore) drop(dir, name string) {
	m := r.byKey[dir]
	if _, ok := m[name]; !ok {
		return
	}
	delete(m, name)
	r.n--
	if len(m) == 0 {
		delete(r.byKey, dir)
	}
}

// Get implements [ds.Datastore].
func (r *recordStore) Get(_ context.Context, k ds.Key) ([]byte, error) {
	dir, name := split(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.byKey[dir][name]; ok {
		return v, nil
	}
	return nil, ds.ErrNotFound
}

// Has implements [ds.Datastore].
func (r *recordStore) Has(ctx context.Context, k ds.Key) (bool, error) {
	_, err := r.Get(ctx, k)
	return err == nil, nil
}

// GetSize implements [ds.Datastore].
func (r *recordStore) GetSize(ctx context.Context, k ds.Key) (int, error) {
	v, err := r.Get(ctx, k)
	return len(v), err
}

// Delete implements [ds.Datastore].
func (r *recordStore) Delete(_ context.Context, k ds.Key) error {
	dir, name := split(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(dir, name)
	return nil
}

// Query implements [ds.Datastore]: the records of one key, or all, as the prefix says.
func (r *recordStore) Query(_ context.Context, q query.Query) (query.Results, error) {
	prefix := strings.TrimSuffix(q.Prefix, "/")
	var out []query.Entry
	r.mu.Lock()
	if m, ok := r.byKey[prefix]; ok {
		out = entriesOf(out, prefix, m)
	} else if strings.Count(prefix, "/") < 2 {
		for dir, m := range r.byKey {
			if strings.HasPrefix(dir, prefix) {
				out = entriesOf(out, dir, m)
			}
		}
	}
	r.mu.Unlock()
	q.Prefix = ""
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, out)), nil
}

func entriesOf(out []query.Entry, dir string, m map[string][]byte) []query.Entry {
	for name, v := range m {
		out = append(out, query.Entry{Key: dir + "/" + name, Value: v, Size: len(v)})
	}
	return out
}

// Batch implements [ds.Batching].
func (r *recordStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(r), nil }

// Sync implements [ds.Datastore].
func (r *recordStore) Sync(context.Context, ds.Key) error { return nil }

// Close implements [ds.Datastore].
func (r *recordStore) Close() error { return nil }
