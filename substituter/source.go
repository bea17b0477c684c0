package substituter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Patience with silent sources of NARs, before another one is started beside.
const (
	peerSilenceLeast = 250 * time.Millisecond
	peerSilenceMost  = 900 * time.Millisecond
)

// source serves the bytes of one flight's NAR.
type source interface {
	name() string
	fromPeer() bool
	// streams tells whether its bytes may reach Nix before the whole is verified.
	streams() bool
	// patience is how long it may be silent before it is worth starting another source.
	patience() time.Duration
	// open returns bytes [from, to) of the NAR, unverified; one that cannot seek may go on after to.
	open(ctx context.Context, f *flight, from, to int64) (io.ReadCloser, error)
	// seeks tells whether it starts at any byte for the price of a request; else it starts at 0 and skips.
	seeks() bool
	good()
	flaky(err error)
	convict(err error)
}

type peerSource struct{ Peer }

func (s peerSource) name() string      { return "peer " + s.ID() }
func (s peerSource) fromPeer() bool    { return true }
func (s peerSource) streams() bool     { return false }
func (s peerSource) seeks() bool       { return true }
func (s peerSource) good()             { s.Good() }
func (s peerSource) convict(err error) { s.Convict(err) }

func (s peerSource) flaky(err error) {
	if !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrBusy) && !errors.Is(err, context.Canceled) {
		s.Flaky(err)
	}
}

func (s peerSource) patience() time.Duration {
	return min(max(8*s.RTT(), peerSilenceLeast), peerSilenceMost)
}

func (s peerSource) open(ctx context.Context, f *flight, from, to int64) (io.ReadCloser, error) {
	return s.NAR(ctx, f.hash, f.v.NarHash(), f.v.NarSize(), from, to)
}

type upstreamSource struct {
	Upstream
	all *flights
}

// distrustTime is how long an upstream that served wrong bytes is asked last and not streamed from: the
// fault is mostly a broken mirror's or proxy's and passes.
const distrustTime = 10 * time.Minute

// distrusted tells whether the source served wrong bytes not long ago.
func (s upstreamSource) distrusted() bool {
	until, ok := s.all.distrust.Load(s.URL())
	return ok && s.all.now().Before(until.(time.Time))
}

func (s upstreamSource) name() string   { return s.URL() }
func (s upstreamSource) fromPeer() bool { return false }
func (s upstreamSource) streams() bool  { return !s.distrusted() }
func (s upstreamSource) seeks() bool    { return false }
func (s upstreamSource) good()          { s.all.records.of(s.Upstream).fine(0) }

// patience follows from how quick the cache's narinfos are; its NARs' headers take longer.
func (s upstreamSource) patience() time.Duration {
	return s.all.finder.records.of(s.Upstream).patience(8, silenceLeast, silenceMost)
}

func (s upstreamSource) flaky(err error) {
	if errors.Is(err, ErrAbsent) || errors.Is(err, context.Canceled) {
		return
	}
	s.all.records.of(s.Upstream).trouble(s.all.now())
	s.Trouble(err)
}

func (s upstreamSource) convict(err error) {
	s.all.distrust.Store(s.URL(), s.all.now().Add(distrustTime))
	s.Trouble(fmt.Errorf("served wrong bytes: %w", err))
	s.all.log.Warn("upstream served wrong bytes", "upstream", s.URL(), "err", err)
}

// open takes the NAR's location from this upstream's own narinfo, whoever told of the path first.
func (s upstreamSource) open(ctx context.Context, f *flight, off, _ int64) (io.ReadCloser, error) {
	got, err := s.all.finder.ofUpstream(ctx, s.Upstream, f.hash)
	if err != nil {
		return nil, err
	}
	if got.v.NarHash() != f.v.NarHash() || got.v.NarSize() != f.v.NarSize() {
		return nil, fmt.Errorf("%s has another build of the path: %w", s.URL(), ErrAbsent)
	}
	body, err := s.NAR(ctx, got.v, off)
	if errors.Is(err, ErrAbsent) {
		s.Trouble(fmt.Errorf("has the narinfo and not the NAR: %w", err))
	}
	if err != nil {
		return nil, err
	}
	return &wireCounter{NARBody: body, total: f.wired}, nil
}

// wireCounter adds up what an upstream sent, compressed.
type wireCounter struct {
	NARBody
	total func(int64)
	seen  atomic.Int64
}

func (c *wireCounter) Read(p []byte) (int, error) {
	n, err := c.NARBody.Read(p)
	c.count()
	return n, err
}

func (c *wireCounter) Close() error {
	err := c.NARBody.Close()
	c.count()
	return err
}

func (c *wireCounter) count() {
	n := c.NARBody.WireBytes()
	c.total(n - c.seen.Swap(n))
}
