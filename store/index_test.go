package store

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flurry-nix/flurry/verify"
)

// Whatever is added, judged and removed, the index is what a map would be.
func TestIndexIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, model := newIndex(0), map[verify.StoreHash]verify.Scope{}
		names, ids := map[verify.StoreHash]string{}, map[int64]verify.StoreHash{}
		last := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 40).Draw(t, "n") {
					var h verify.StoreHash
					// Few leading bits, so that table slots collide.
					h[0], h[19] = byte(rapid.IntRange(0, 3).Draw(t, "lead")), byte(rapid.IntRange(0, 255).Draw(t, "end"))
					name := rapid.SampledFrom([]string{"a", "name-1.2", "x_y"}).Draw(t, "name")
					last++
					x.add("/nix/store", row{last, "/nix/store/" + h.String() + "-" + name})
					if _, ok := model[h]; !ok {
						model[h], names[h], ids[last] = verify.ScopeNone, name, h
					}
				}
			},
			"judge": func(t *rapid.T) {
				for h := range model {
					scope := verify.Scope(rapid.IntRange(0, 2).Draw(t, "scope"))
					x.judge(x.find(h), scope, 1, &Change{})
					model[h] = scope
				}
			},
			"remove": func(t *rapid.T) {
				fresh := newIndex(0)
				for _, id := range slices.Sorted(maps.Keys(ids)) {
					h := ids[id]
					if rapid.Bool().Draw(t, "keep") {
						fresh.add("/nix/store", row{id, "/nix/store/" + h.String() + "-" + names[h]})
						continue
					}
					delete(model, h)
					delete(ids, id)
				}
				c := fresh.inherit(x)
				want := x.shared(verify.ScopeGroup) - fresh.shared(verify.ScopeGroup)
				if len(c.Removed) != want || len(c.Added) != 0 {
					t.Fatalf("%d removed, want %d", len(c.Removed), want)
				}
				x = fresh
			},
			"": func(t *rapid.T) {
				group := 0
				for h, scope := range model {
					r := x.find(h)
					if r == nil || r.scope != scope || x.name(r) != names[h] {
						t.Fatalf("%v: %+v", h, r)
					}
					if x.findKey(h.Digest().Key(), func(r *record) bool { return r.hash == h }) != r {
						t.Fatalf("%v not found by key", h)
					}
					if scope != verify.ScopeNone {
						group++
					}
				}
				if len(x.recs)-x.malformed != len(model) || x.shared(verify.ScopeGroup) != group {
					t.Fatalf("%d records, %d malformed, %d shared; want %d, %d", len(x.recs), x.malformed, x.shared(verify.ScopeGroup), len(model), group)
				}
			},
		})
	})
}

func TestNextUncheckedIsTheNewestRun(t *testing.T) {
	x := newIndex(0)
	for id := range int64(10) {
		var h verify.StoreHash
		binary.BigEndian.PutUint64(h[:], uint64(id))
		x.add("/nix/store", row{10 * id, fmt.Sprintf("/nix/store/%s-n", h)})
	}
	var c Change
	for _, i := range []int{3, 8, 9} {
		x.judge(&x.recs[i], verify.ScopePublic, 0, &c)
	}
	for _, want := range [][2]int64{{60, 70}, {40, 50}, {10, 20}, {0, 0}} {
		lo, hi, ok := x.nextUnchecked(1<<62, 2)
		if !ok || lo != want[0] || hi != want[1] {
			t.Fatalf("%d to %d, %v; want %v", lo, hi, ok, want)
		}
		for i := x.byID(lo); i < x.byID(hi+1); i++ {
			x.judge(&x.recs[i], verify.ScopeNone, 0, &c)
		}
	}
	if _, _, ok := x.nextUnchecked(1<<62, 2); ok {
		t.Error("more")
	}
}
