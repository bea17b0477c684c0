package substituter

import (
	"testing"

	"pgregory.net/rapid"
)

func TestSpansAreASetOfBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 60
		var s spans
		var want [size]bool
		for range rapid.IntRange(0, 12).Draw(t, "adds") {
			from := rapid.Int64Range(0, size).Draw(t, "from")
			to := rapid.Int64Range(from, size).Draw(t, "to")
			s = s.add(from, to)
			for i := from; i < to; i++ {
				want[i] = true
			}
			for i := 1; i < len(s); i++ {
				if s[i-1].to >= s[i].from {
					t.Fatalf("not disjoint and apart: %v", s)
				}
			}
			for i := range want {
				if s.has(int64(i)) != want[i] {
					t.Fatalf("byte %d in %v: want %v", i, s, want[i])
				}
			}
			a := rapid.Int64Range(0, size).Draw(t, "a")
			b := rapid.Int64Range(a, size).Draw(t, "b")
			first := a
			for first < b && want[first] {
				first++
			}
			g, ok := s.gap(a, b)
			if ok != (first < b) || ok && (g.from != first || g.to <= g.from || g.to > b) {
				t.Fatalf("gap(%d, %d) of %v: %v %v", a, b, s, g, ok)
			}
		}
	})
}
