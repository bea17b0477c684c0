package substituter

import (
	"cmp"
	"slices"
	"time"
)

// FlightStatus is a NAR on its way, as an operator sees it.
type FlightStatus struct {
	Path string   // base name; may be private
	Got  int64    // bytes of the NAR that are here
	Size int64    // its bytes
	From []string // peers' ids and upstreams' URLs that are sending now
}

// Flights returns the NARs that are being fetched now, the oldest first.
func (s *Server) Flights() []FlightStatus {
	type aged struct {
		FlightStatus
		since time.Time
	}
	a := &s.flights
	a.mu.Lock()
	var list []aged
	for _, f := range a.byHash {
		f.mu.Lock()
		if !f.done {
			list = append(list, aged{f.statusLocked(), f.began})
		}
		f.mu.Unlock()
	}
	a.mu.Unlock()
	slices.SortFunc(list, func(x, y aged) int {
		return cmp.Or(x.since.Compare(y.since), cmp.Compare(x.Path, y.Path))
	})
	out := make([]FlightStatus, len(list))
	for i, x := range list {
		out[i] = x.FlightStatus
	}
	return out
}

// statusLocked describes f; f.mu is held.
func (f *flight) statusLocked() FlightStatus {
	st := FlightStatus{Path: f.v.Path().Base(), Size: f.v.NarSize()}
	for _, s := range f.written {
		st.Got += s.len()
	}
	for l := range f.legs {
		if !l.dismissed {
			st.From = append(st.From, l.src.name())
		}
	}
	slices.Sort(st.From)
	return st
}
