package main

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/page"
	"github.com/flurry-nix/flurry/substituter"
)

// serveControl answers the command line on the control socket. Without the socket the agent still
// serves Nix. base is where a browser on this machine reaches the page.
func (a *agent) serveControl(ctx context.Context, base string) error {
	candidates := control.Candidates(os.Environ(), a.cfg.State.Dir)
	if a.socket != "" {
		candidates = []string{a.socket}
	}
	ln, err := control.Listen(candidates)
	if err != nil {
		a.problem(err)
		return nil
	}
	h := control.Handler(control.Agent{
		Report: a.report,
		Locate: a.locate,
		ID:     a.id,
		Keys: func() control.Keys {
			public, private := a.cfg.KeyStrings()
			return control.Keys{Public: public, Private: private}
		},
		Pause:  a.pause,
		Resume: func() control.Sharing { return a.setPaused(false, nil) },
		Clear:  a.clear,
		Doctor: a.checkup,
		Cache:  a.nix.Handler(http.NotFoundHandler()),
		Login: func() control.Dashboard {
			return control.Dashboard{URL: base + a.page.Login(), Seconds: int(page.TokenLife.Seconds())}
		},
	})
	return control.Serve(ctx, ln, h, a.log)
}

func (a *agent) id() control.ID {
	if a.host == nil {
		return control.ID{Addrs: []string{}}
	}
	return control.ID{PeerID: a.host.ID(), Addrs: a.host.Addrs()}
}

// locate tells who has a path, with what is known of each.
func (a *agent) locate(ctx context.Context, t control.Target) (control.Location, error) {
	found, err := a.nix.Locate(ctx, t.Hash)
	loc := control.Location{Hash: t.Hash.String()}
	if v := found.Narinfo; v != nil {
		loc.Path, loc.NarHash, loc.NarSize = v.Path().String(), v.NarHash().String(), v.NarSize()
	}
	peers := map[string]status.Peer{}
	for _, p := range a.report().Peers {
		peers[p.ID] = p
	}
	usable := true
	for _, h := range found.Holders {
		s := control.Source{Kind: h.Kind, ID: h.ID, Note: h.Note}
		if h.Kind == substituter.HolderPeer {
			p := peers[h.ID]
			s.Via, s.RTTMillis, s.BytesPerSec = p.Via, p.RTTMillis, p.BytesPerSec
		}
		if usable && h.Note == "" {
			s.Use, usable = true, false
		}
		loc.Sources = append(loc.Sources, s)
	}
	return loc, err
}

// pause stops sharing; after d (0: never) it starts again by itself.
func (a *agent) pause(d time.Duration) control.Sharing {
	if d == 0 {
		return a.setPaused(true, nil)
	}
	until := time.Now().Add(d)
	return a.setPaused(true, &until)
}

func (a *agent) setPaused(on bool, until *time.Time) control.Sharing {
	a.pausing.Lock()
	defer a.pausing.Unlock()
	if a.resumeTimer != nil {
		a.resumeTimer.Stop()
		a.resumeTimer = nil
	}
	if a.host == nil {
		return control.Sharing{Paused: true}
	}
	a.paused = on
	a.host.Pause(a.paused || a.metered)
	if until != nil {
		a.resumeTimer = time.AfterFunc(time.Until(*until), func() { a.setPaused(false, nil) })
	}
	return control.Sharing{Paused: on, Until: until, Metered: a.metered}
}

// setMetered stops sharing on a link that is paid by the byte. Nix is served all the same.
func (a *agent) setMetered(on bool) {
	a.pausing.Lock()
	defer a.pausing.Unlock()
	a.metered = on
	a.host.Pause(a.paused || a.metered)
	if on {
		a.log.Info("the network is metered: nothing is shared with peers")
	} else {
		a.log.Info("the network is not metered any more")
	}
}

// sharing is the word for the report.
func (a *agent) sharing() string {
	a.pausing.Lock()
	defer a.pausing.Unlock()
	switch {
	case a.paused:
		return "paused"
	case a.metered:
		return "metered"
	}
	return "on"
}

func (a *agent) clear(_ context.Context, what control.What) (c control.Cleared, err error) {
	if what != control.ClearNARs {
		c.NarInfos, c.Negative, err = a.nix.ForgetNarInfos(what != control.ClearNegative)
	}
	if what == control.ClearAll || what == control.ClearNARs {
		c.NARs, c.Bytes = a.nix.ForgetNARs()
	}
	return c, err
}

// findings are the agent's half of the doctor's, as the page shows them.
func (a *agent) findings(ctx context.Context) (out []page.Finding) {
	for _, f := range a.checkup(ctx) {
		out = append(out, page.Finding{Level: page.Level(f.Level), What: f.Check + ": " + f.What, Why: f.Why, Remedy: f.Remedy, NixOS: f.NixOS})
	}
	return out
}
