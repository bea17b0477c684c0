package substituter

import "sort"

// span is the byte range [from, to).
type span struct{ from, to int64 }

func (s span) len() int64 { return s.to - s.from }

// spans is a set of bytes as disjoint, non-adjacent ranges in order. A NAR on its way has a handful.
type spans []span

// add returns the set with [from, to) in it.
func (s spans) add(from, to int64) spans {
	if from >= to {
		return s
	}
	i := sort.Search(len(s), func(i int) bool { return s[i].to >= from })
	j := i
	for j < len(s) && s[j].from <= to {
		from, to = min(from, s[j].from), max(to, s[j].to)
		j++
	}
	if i == j {
		s = append(s, span{})
		copy(s[i+1:], s[i:])
		s[i] = span{from, to}
		return s
	}
	s[i] = span{from, to}
	return append(s[:i+1], s[j:]...)
}

// gap returns the first run of missing bytes within [from, to).
func (s spans) gap(from, to int64) (span, bool) {
	for _, h := range s {
		if h.to <= from {
			continue
		}
		if h.from > from {
			return span{from, min(to, h.from)}, from < to
		}
		from = h.to
	}
	return span{from, to}, from < to
}

// lastGap returns the last run of missing bytes within [from, to).
func (s spans) lastGap(from, to int64) (span, bool) {
	for i := len(s) - 1; i >= 0 && to > from; i-- {
		h := s[i]
		if h.from >= to {
			continue
		}
		if h.to < to {
			return span{max(from, h.to), to}, true
		}
		to = h.from
	}
	return span{from, to}, from < to
}

// cut returns the set without [from, to).
func (s spans) cut(from, to int64) (out spans) {
	for _, h := range s {
		if l := (span{h.from, min(h.to, from)}); l.from < l.to {
			out = append(out, l)
		}
		if r := (span{max(h.from, to), h.to}); r.from < r.to {
			out = append(out, r)
		}
	}
	return out
}

// has tells whether byte at is in the set.
func (s spans) has(at int64) bool {
	g, ok := s.gap(at, at+1)
	return !ok || g.len() == 0
}

// front is how many bytes from 0 on are in the set without a gap.
func (s spans) front() int64 {
	if len(s) == 0 || s[0].from > 0 {
		return 0
	}
	return s[0].to
}
