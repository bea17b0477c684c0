// Package page is the web page of a running agent: one glance at whether it shares, where bytes come
// from and what is wrong. It only reads; nothing can be changed through it.
//
// Anybody on this machine sees aggregates. What names a path, a peer or a cache is shown to a browser that
// came with a token from the control socket ([Page.Login]). The page must never load anything from
// elsewhere, put untrusted text anywhere but through html/template, or do work while nobody looks.
//
// Whoever mounts it refuses other hosts' names and other sites' requests (substituter's guard).
package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/status"
)

const (
	refresh    = 2 * time.Second  // between looks of an open page: quick enough to follow a copy
	checkEvery = 5 * time.Minute  // between checks while somebody looks
	checkLimit = time.Minute      // a check that takes longer tells what it found
	heartbeat  = 15 * time.Second // a silent stream says that it lives
	maxStreams = 32               // open pages that are kept up to date
	writeLimit = 10 * time.Second // a browser that takes no more is let go

	reconnect = "retry: 1000\n\n" // ms until a browser asks a restarted agent again
)

// Level says how bad a finding is.
type Level string

// Levels of a finding.
const (
	OK   Level = "ok"
	Note Level = "note" // cannot be told, or is off by choice
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was checked. All text may be untrusted.
type Finding struct {
	Level  Level
	What   string
	Why    string // why it matters
	Remedy string // the command or change that mends it
	NixOS  string // the option that does it on NixOS
}

// health is the outcome of the latest check.
type health struct {
	at       time.Time // zero: not yet checked
	findings []Finding
}

// Config wires a Page. Report is required.
type Config struct {
	Report func() status.Report // quick, safe for concurrent use
	// Check looks for what is wrong and may take its time; it is asked while a page is open. nil leaves
	// only the report's problems.
	Check func(context.Context) []Finding
	// Local tells whether a request came from this machine; others are never logged in. nil: all are.
	Local func(*http.Request) bool
	Now   func() time.Time // nil means time.Now
}

// Page serves the page. Make it with New, let it take samples with Run.
type Page struct {
	cfg      Config
	sessions sessions
	history  history
	streams  chan struct{} // a place for each open page
	looked   chan struct{} // gets a token when somebody looks

	mu      sync.Mutex // guards all below
	latest  status.Report
	askedAt time.Time
	health  health
}

// New makes a Page.
func New(cfg Config) *Page {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Local == nil {
		cfg.Local = func(*http.Request) bool { return true }
	}
	return &Page{cfg: cfg, sessions: newSessions(cfg.Now), streams: make(chan struct{}, maxStreams), looked: make(chan struct{}, 1)}
}

// Run takes samples of the byte counters, and checks while somebody looks, until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	defer checks.Wait()
	if p.cfg.Check != nil {
		checks.Go(func() { p.keepChecking(ctx) })
	}
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		p.history.add(totalsOf(p.cfg.Report().Bytes))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// keepChecking checks when somebody looks and the latest check is old.
func (p *Page) keepChecking(ctx context.Context) {
	for {
		select {
		case <-p.looked:
		case <-ctx.Done():
			return
		}
		if at := p.checked().at; !at.IsZero() && p.cfg.Now().Sub(at) < checkEvery {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, checkLimit)
		found := p.cfg.Check(limited)
		cancel()
		p.mu.Lock()
		p.health = health{p.cfg.Now(), found}
		p.mu.Unlock()
	}
}

func (p *Page) checked() health {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.health
}

// Login returns a path with a token that logs one browser in, once and within [TokenLife].
func (p *Page) Login() string { return "/login?token=" + p.sessions.token() }

// Handler serves the page, and next what is not the page's.
func (p *Page) Handler(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.whole)
	mux.HandleFunc("GET /events", p.events)
	mux.HandleFunc("GET /login", p.login)
	mux.HandleFunc("GET /assets/{name}", serveAsset)
	mux.Handle("/", next)
	return mux
}

// contentPolicy allows what this program itself serves, and no more.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func harden(h http.Header) {
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// report is the agent's state, at most half a refresh old however many look.
func (p *Page) report() status.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.cfg.Now(); p.askedAt.IsZero() || now.Sub(p.askedAt) > refresh/2 {
		p.latest, p.askedAt = p.cfg.Report(), now
	}
	return p.latest
}

// known tells whether the request comes with a login.
func (p *Page) known(r *http.Request) bool {
	c, err := r.Cookie(cookieName(r))
	return err == nil && p.cfg.Local(r) && p.sessions.known(c.Value)
}

// view is what the templates show to r's sender.
func (p *Page) view(r *http.Request) view {
	select {
	case p.looked <- struct{}{}:
	default:
	}
	span := spanOf(r.URL.Query().Get("span"))
	v := newView(p.report(), p.known(r), span, p.history.samples(span))
	v.health(p.report().Problems, p.checked(), p.cfg.Check != nil, p.cfg.Now())
	return v
}

func (p *Page) whole(w http.ResponseWriter, r *http.Request) {
	p.send(w, http.StatusOK, "page", p.view(r))
}

func (p *Page) send(w http.ResponseWriter, code int, name string, data any) {
	var b bytes.Buffer
	harden(w.Header())
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, "the page cannot be shown: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	w.Write(b.Bytes())
}

// login exchanges a token for a session.
func (p *Page) login(w http.ResponseWriter, r *http.Request) {
	if !p.cfg.Local(r) {
		p.send(w, http.StatusForbidden, "refused", "Log in on the machine itself, or through a tunnel to it.")
		return
	}
	session, ok := p.sessions.exchange(r.URL.Query().Get("token"))
	if !ok {
		p.send(w, http.StatusForbidden, "refused", "This link was used already or is too old.")
		return
	}
	harden(w.Header())
	http.SetCookie(w, &http.Cookie{
		Name: cookieName(r), Value: session, Path: "/", MaxAge: int(sessionLife.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// events sends the page's changing part whenever it changed (server-sent events, HTML as a JSON string).
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	select {
	case p.streams <- struct{}{}:
		defer func() { <-p.streams }()
	default:
		w.Header().Set("Retry-After", "30")
		http.Error(w, "too many pages are open; close some", http.StatusServiceUnavailable)
		return
	}
	harden(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	io.WriteString(w, reconnect)
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	var last []byte
	for silent := time.Duration(0); ; silent += refresh {
		var b bytes.Buffer
		if err := templates.ExecuteTemplate(&b, "main", p.view(r)); err != nil {
			return
		}
		var event string
		if !bytes.Equal(b.Bytes(), last) {
			last = b.Bytes()
			text, err := json.Marshal(b.String())
			if err != nil {
				return
			}
			event = fmt.Sprintf("data: %s\n\n", text)
		} else if silent >= heartbeat {
			event = ": still here\n\n"
		}
		if event != "" {
			silent = 0
			out.SetWriteDeadline(time.Now().Add(writeLimit))
			if _, err := w.Write([]byte(event)); err != nil || out.Flush() != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
