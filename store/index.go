package store

import (
	"encoding/binary"
	"sort"
	"strings"

	"github.com/flurry-nix/flurry/verify"
)

// index is what memory knows: one record per row of ValidPaths, in the order of their ids, found by
// store hash and by digest key. About 85 bytes per path with a usual name; Go's maps would double it.
type index struct {
	recs      []record
	names     []byte
	byHash    table
	byKey     table
	scopes    [verify.ScopePublic + 1]int
	unchecked int
	malformed int
}

type record struct {
	id    int64
	key   uint64 // of the hash's digest
	sum   uint64 // of the row that scope was decided on
	hash  verify.StoreHash
	name  uint32 // offset in names
	len   uint8
	scope verify.Scope
	state state
}

type state uint8

const (
	unchecked state = iota
	checked
	malformed // not a store path, or a second one of the same hash: not in the tables, never shared
)

func newIndex(size int) *index {
	x := &index{recs: make([]record, 0, size), names: make([]byte, 0, 24*size)}
	x.byHash.grow(size)
	x.byKey.grow(size)
	return x
}

// row is what an index needs of a row of ValidPaths.
type row struct {
	id   int64
	path string
}

// add appends the row, whose id is greater than all others, and returns its record.
func (x *index) add(dir string, r row) *record {
	x.recs = append(x.recs, record{id: r.id, state: malformed})
	i := len(x.recs) - 1
	rec := &x.recs[i]
	base, ok := strings.CutPrefix(r.path, dir+"/")
	p, err := verify.ParseStorePath(r.path)
	if !ok || err != nil || p.Dir() != dir || x.find(p.Hash()) != nil {
		x.malformed++
		return rec
	}
	rec.state, rec.hash, rec.key = unchecked, p.Hash(), p.Hash().Digest().Key()
	name := base[verify.StoreHashLen+1:]
	rec.name, rec.len = uint32(len(x.names)), uint8(len(name))
	x.names = append(x.names, name...)
	x.unchecked++
	x.scopes[verify.ScopeNone]++
	x.link(i)
	return rec
}

func (x *index) link(i int) {
	if x.byHash.full() {
		x.byHash.grow(len(x.recs))
		x.byKey.grow(len(x.recs))
		for j := range x.recs[:i] {
			x.put(j)
		}
	}
	x.put(i)
}

func (x *index) put(i int) {
	if r := &x.recs[i]; r.state != malformed {
		x.byHash.put(spread(r.hash), uint32(i))
		x.byKey.put(r.key, uint32(i))
	}
}

// spread takes 64 of the 160 bits, which are themselves a hash's.
func spread(h verify.StoreHash) uint64 { return binary.BigEndian.Uint64(h[:8]) }

// find returns the record of h or nil.
func (x *index) find(h verify.StoreHash) *record {
	return x.first(&x.byHash, spread(h), func(r *record) bool { return r.hash == h })
}

// findKey returns the first record of that digest key for which ok holds, or nil.
func (x *index) findKey(key uint64, ok func(*record) bool) *record {
	return x.first(&x.byKey, key, func(r *record) bool { return r.key == key && ok(r) })
}

func (x *index) first(t *table, at uint64, ok func(*record) bool) *record {
	for i := at & t.mask(); len(t.slots) > 0 && t.slots[i] != 0; i = (i + 1) & t.mask() {
		if r := &x.recs[t.slots[i]-1]; ok(r) {
			return r
		}
	}
	return nil
}

// byID returns the position of the first record whose id is at least id.
func (x *index) byID(id int64) int {
	return sort.Search(len(x.recs), func(i int) bool { return x.recs[i].id >= id })
}

func (x *index) name(r *record) string { return string(x.names[r.name:][:r.len]) }

// lastID returns the greatest id, 0 if there is none.
func (x *index) lastID() int64 {
	if len(x.recs) == 0 {
		return 0
	}
	return x.recs[len(x.recs)-1].id
}

// shared returns how many paths may go to reader.
func (x *index) shared(reader verify.Scope) (n int) {
	for scope, count := range x.scopes {
		if shareable(verify.Scope(scope), reader) {
			n += count
		}
	}
	return n
}

// judge records a verdict and notes in c what it changes.
func (x *index) judge(r *record, scope verify.Scope, sum uint64, c *Change) {
	if r.state == malformed {
		return
	}
	if r.state == unchecked {
		x.unchecked--
	}
	r.state, r.sum = checked, sum
	if scope == r.scope {
		return
	}
	if r.scope != verify.ScopeNone {
		c.Removed = append(c.Removed, r.entry())
	}
	x.scopes[r.scope]--
	x.scopes[scope]++
	r.scope = scope
	if scope != verify.ScopeNone {
		c.Added = append(c.Added, r.entry())
	}
}

func (r *record) entry() Entry { return Entry{r.hash, r.key, r.scope} }

// inherit takes over the verdicts of old for rows that are the same, and returns what is no longer
// shareable. x must be fresh.
func (x *index) inherit(old *index) Change {
	var c, ignored Change
	for i := range old.recs {
		o := &old.recs[i]
		if o.state == malformed {
			continue
		}
		var same *record
		if j := x.byID(o.id); j < len(x.recs) && x.recs[j].id == o.id && x.recs[j].hash == o.hash {
			same = &x.recs[j]
		}
		switch {
		case same != nil && o.state == checked:
			x.judge(same, o.scope, o.sum, &ignored)
		case same == nil && o.scope != verify.ScopeNone:
			c.Removed = append(c.Removed, o.entry())
		}
	}
	return c
}

// everything returns all shareable paths.
func (x *index) everything() (list []Entry) {
	for i := range x.recs {
		if r := &x.recs[i]; r.scope != verify.ScopeNone {
			list = append(list, r.entry())
		}
	}
	return list
}

// nextUnchecked returns the ids of the newest run of unchecked records, at most limit of them, below
// the id before.
func (x *index) nextUnchecked(before int64, limit int) (lo, hi int64, ok bool) {
	if x.unchecked == 0 {
		return 0, 0, false
	}
	i := x.byID(before) - 1
	for i >= 0 && x.recs[i].state != unchecked {
		i--
	}
	if i < 0 {
		return 0, 0, false
	}
	hi = x.recs[i].id
	for ; i >= 0 && limit > 0 && x.recs[i].state == unchecked; i-- {
		lo = x.recs[i].id
		limit--
	}
	return lo, hi, true
}

// table is an open-addressing hash table of positions; 0 is an empty slot.
type table struct {
	slots []uint32
	used  int
}

func (t *table) mask() uint64 { return uint64(len(t.slots) - 1) }

// full tells whether the table is at half its slots, beyond which runs grow long.
func (t *table) full() bool { return 2*(t.used+1) > len(t.slots) }

// grow empties the table and makes room for at least n positions.
func (t *table) grow(n int) {
	size := 16
	for size < 2*(n+1) {
		size *= 2
	}
	t.slots, t.used = make([]uint32, size), 0
}

func (t *table) put(at uint64, pos uint32) {
	i := at & t.mask()
	for t.slots[i] != 0 {
		i = (i + 1) & t.mask()
	}
	t.slots[i] = pos + 1
	t.used++
}
