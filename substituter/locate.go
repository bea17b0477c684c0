package substituter

import (
	"context"
	"errors"

	"github.com/flurry-nix/flurry/verify"
)

// Kinds of a [Holder].
const (
	HolderStore    = "store"     // the local store
	HolderInFlight = "in-flight" // being fetched right now
	HolderPeer     = "peer"
	HolderUpstream = "upstream"
)

// Holder is one that has a path.
type Holder struct {
	Kind string
	ID   string // peer id or upstream's URL, else empty
	Note string // why it would not be used, empty if it would
}

// Location is what is known of a path: who has it, in the order in which they would be tried.
type Location struct {
	Narinfo *verify.Verified // nil if nobody knows it
	Holders []Holder
}

// Locate asks who has a path, as far as Nix's own question would. The error says why an upstream could
// not be asked; what was found without it is returned beside.
func (s *Server) Locate(ctx context.Context, h verify.StoreHash) (Location, error) {
	var loc Location
	got, err := s.finder.find(ctx, h)
	if err == nil {
		loc.Narinfo = got.v
	}
	if s.store.Has(h) {
		note := ""
		if got == nil {
			note = "not signed by a configured key, so it is not offered to anybody"
		}
		loc.Holders = append(loc.Holders, Holder{HolderStore, "", note})
	}
	if got == nil {
		if errors.Is(err, ErrAbsent) {
			err = nil
		}
		return loc, err
	}
	if s.flights.has(got.v.NarHash()) {
		loc.Holders = append(loc.Holders, Holder{Kind: HolderInFlight})
	}
	for _, p := range s.flights.laggards.last(s.finder.peers.Holders(h.Digest(), got.v.NarSize())) {
		loc.Holders = append(loc.Holders, Holder{Kind: HolderPeer, ID: p.ID()})
	}
	err = nil
	for _, up := range s.finder.upstreams {
		switch _, uerr := s.finder.ofUpstream(ctx, up, h); {
		case uerr == nil:
			loc.Holders = append(loc.Holders, Holder{Kind: HolderUpstream, ID: up.URL()})
		case !errors.Is(uerr, ErrAbsent):
			loc.Holders = append(loc.Holders, Holder{HolderUpstream, up.URL(), uerr.Error()})
		}
	}
	return loc, nil
}
