package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/verify"
)

const (
	headerBusy = 45 * time.Second // a header may take while the cache sends other things
	// Silence that a busy link explains: of connections in a queue that overflows, one machine's may all get
	// nothing for seconds.
	silentBusy = 10 * time.Second
)

// Client asks one cache. Safe for concurrent use. Its requests end with their contexts; it keeps no
// goroutine of its own beyond idle connections, which [Client.Close] drops.
type Client struct {
	base     *url.URL
	keys     *verify.Keys
	storeDir string
	agent    string
	secrets  http.Header
	limit    *throttle.Throttle
	log      *slog.Logger
	t        Timeouts
	http     *http.Client
	hop      *transport
	breaker  breaker
	xz       xzChoice
	zstds    sync.Pool // idle *zstd.Decoder

	narinfos atomic.Int64
	wire     atomic.Int64 // bytes of bodies received
	denied   atomic.Bool  // its latest answer was 401
	heard    atomic.Int64 // when it last answered or sent a NAR's bytes, in Unix nanoseconds; 0: never
	pending  atomic.Int32 // requests that wait for an answer's header
	asked    atomic.Int64 // when the latest began that nothing else waited beside, as heard
	busy     func() bool  // whether the link is busy with what this site's machines get; may be nil

	mu     sync.Mutex // guards all below
	rtt    rttEstimate
	last   error // latest trouble
	lastAt time.Time
	skew   *time.Duration // its clock minus ours, as of its latest answer; nil unknown
}

// SetBusy names what tells whether the link is busy with what the machines of this site get from central caches. It
// is to be called before the client is used.
func (c *Client) SetBusy(busy func() bool) { c.busy = busy }

// Sends tells whether the cache answered a request or sent bytes of a NAR not longer than d ago, or has for less than 10 s been
// asked in vain while the link is busy.
func (c *Client) Sends(d time.Duration) bool {
	heard := c.heard.Load()
	if time.Since(time.Unix(0, heard)) < d {
		return true
	}
	vain := time.Since(time.Unix(0, max(heard, c.asked.Load())))
	return vain < silentBusy && c.busy != nil && c.busy()
}

// URL returns the cache's address without credentials, parameters or trailing slash.
func (c *Client) URL() string { return c.base.String() }

// Close drops idle connections. Requests under way end with their contexts.
func (c *Client) Close() {
	c.hop.http.Load().CloseIdleConnections()
	c.hop.direct.closeIdle()
}

// Renew makes new requests go over new connections: after this machine slept or changed its address the old
// ones may be dead without a word. What is under way goes on.
func (c *Client) Renew() {
	old := c.hop.http.Load()
	c.hop.http.Store(old.Clone())
	old.CloseIdleConnections()
	c.hop.direct.closeIdle()
}

// Status is what an operator sees of a cache.
type Status struct {
	URL             string        // without credentials
	Reachable       bool          // nothing says that it is not
	LastError       string        // latest trouble in reaching it, "" if none
	LastErrorAt     time.Time     // zero if none
	Requests        int64         // HTTP requests sent, redirects followed and resumptions included
	NarInfoRequests int64         // narinfos asked for
	WireBytes       int64         // bytes of bodies received, as sent
	RTT             time.Duration // smoothed time to a small answer's header; 0: not known yet
	Breaker         string        // "closed", "open" or "probing"
	Denied          bool          // it refuses the credentials, or wants some
	RetryAt         time.Time     // while the breaker is open: when it will be probed
	Skew            time.Duration // its clock minus ours, by its latest answer; see Dated
	Dated           bool          // an answer told its time
	XZ              string        // how xz is decoded: "xz program PATH", or "pure Go: " and why
}

// Status reports the client's state and counters.
func (c *Client) Status() Status {
	s := Status{
		URL:             c.URL(),
		Requests:        c.hop.requests.Load(),
		NarInfoRequests: c.narinfos.Load(),
		WireBytes:       c.wire.Load(),
		XZ:              c.xz.String(),
	}
	s.Breaker, s.RetryAt, _ = c.breaker.state()
	s.Denied = c.denied.Load()
	s.Reachable = s.Breaker == "closed" && !s.Denied
	c.mu.Lock()
	defer c.mu.Unlock()
	s.RTT = c.rtt.smooth
	if c.skew != nil {
		s.Skew, s.Dated = *c.skew, true
	}
	if c.last != nil {
		s.LastError, s.LastErrorAt = c.last.Error(), c.lastAt
	}
	return s
}

// gate asks the breaker for leave to ask for u.
func (c *Client) gate(ctx context.Context, u *url.URL, urgent bool) (*ticket, error) {
	t, err := c.breaker.enter(ctx, urgent)
	var un *UnreachableError
	if errors.As(err, &un) {
		un.URL = show(u)
	} else if err != nil {
		err = c.unreachable(u, err)
	}
	return t, err
}

// request is one question to the cache. cancel must end ctx; it also stands for the header's timeout.
type request struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	method  string
	url     *url.URL
	header  http.Header
	timeout time.Duration // until the answer's header
	ticket  *ticket
}

// ask sends a request, follows redirects, and sorts the answer: 200, 206 and 416 are returned (416 with
// its body closed), an absence gives ErrAbsent, all else an *UnreachableError, except that a cancelled
// caller gets its context's error. The breaker learns of it. The answer's body lives as long as r.ctx.
func (c *Client) ask(r request) (*http.Response, error) {
	req := (&http.Request{
		Method: r.method, URL: r.url, Host: r.url.Host, Header: r.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(r.ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if c.pending.Add(1) == 1 {
		c.asked.Store(time.Now().UnixNano())
	}
	answered := c.awaitHeader(r)
	resp, err := c.http.Do(req)
	c.pending.Add(-1)
	if !answered() && err == nil { // too late: the body is dead
		resp.Body.Close()
		err = errHeaderTimeout
	}
	if err != nil {
		return nil, c.askFailed(r, err)
	}
	c.heard.Store(time.Now().UnixNano())
	c.noteClock(resp.Header, time.Now())
	switch code := resp.StatusCode; code {
	case http.StatusOK, http.StatusPartialContent:
		r.ticket.ok()
		c.denied.Store(false)
		return resp, nil
	case http.StatusRequestedRangeNotSatisfiable:
		r.ticket.ok()
		discard(resp.Body)
		return resp, nil
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
		r.ticket.ok()
		discard(resp.Body)
		c.denied.Store(false)
		return nil, fmt.Errorf("%s: %w (HTTP status %d)", show(r.url), ErrAbsent, code)
	case http.StatusUnauthorized:
		r.ticket.ok()
		discard(resp.Body)
		return nil, c.unauthorized(r.url)
	}
	discard(resp.Body)
	return nil, c.statusTrouble(r, resp)
}

// awaitHeader cancels r if no answer's header comes in time. As long as the cache sends other things, its link is
// busy and this answer may be queued behind them: it may take headerBusy then. answered stops the
// clock; false means that it was too late.
func (c *Client) awaitHeader(r request) (answered func() bool) {
	const waiting, came, late = 0, 1, 2
	var state atomic.Int32
	last := time.Now().Add(headerBusy)
	var timer *time.Timer
	timer = time.AfterFunc(time.Hour, func() {
		if c.Sends(r.timeout) && time.Now().Before(last) {
			if state.Load() == waiting {
				timer.Reset(r.timeout / 4)
			}
		} else if state.CompareAndSwap(waiting, late) {
			r.cancel(errHeaderTimeout)
		}
	})
	timer.Reset(r.timeout)
	return func() bool {
		timer.Stop()
		return state.CompareAndSwap(waiting, came)
	}
}

// askFailed sorts a request that got no answer.
func (c *Client) askFailed(r request, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) { // it would print the URL with its query
		err = ue.Err
	}
	cause := context.Cause(r.ctx)
	switch {
	case errors.Is(err, ErrForbidden):
		r.ticket.ok() // it did answer
		return c.note(&UnreachableError{URL: show(r.url), Cause: err})
	case errors.Is(err, errHeaderTimeout), errors.Is(cause, errHeaderTimeout):
		err = fmt.Errorf("%w (%v)", errHeaderTimeout, r.timeout)
	case errors.Is(cause, errTooSlow):
		err = errTooSlow
	case cause != nil:
		r.ticket.drop()
		return c.unreachable(r.url, cause)
	}
	return c.note(&UnreachableError{URL: show(r.url), Cause: err, RetryAt: r.ticket.fail(err, 0)})
}

// unauthorized makes the error of a 401. It is no absence: what is remembered as one would outlive the
// mended credentials.
func (c *Client) unauthorized(u *url.URL) error {
	remedy := "renew what headers_file or netrc_file says, and restart the agent"
	if len(c.secrets) == 0 {
		remedy = "set the upstream's netrc_file or headers_file"
	}
	e := &UnreachableError{URL: show(u), Cause: fmt.Errorf("%w; %s", ErrUnauthorized, remedy)}
	if !c.denied.Swap(true) {
		c.log.Warn("the cache refuses the credentials", "remedy", remedy)
	}
	return c.note(e)
}

// statusTrouble sorts an answer that is neither yes nor no.
func (c *Client) statusTrouble(r request, resp *http.Response) error {
	e := &UnreachableError{URL: show(r.url), Cause: &StatusError{resp.StatusCode}}
	code := resp.StatusCode
	if code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
		e.retryAfter = min(retryAfter(resp.Header, time.Now()), c.t.RetryAfterMax)
	}
	switch {
	case code == http.StatusTooManyRequests || e.retryAfter > 0:
		e.RetryAt = r.ticket.fail(e.Cause, e.retryAfter)
	case code >= 500:
		e.RetryAt = r.ticket.serverError(e.Cause)
	default:
		r.ticket.ok()
	}
	return c.note(e)
}

// unreachable wraps a caller's end: a deadline is the cache's slowness, a cancellation is nobody's.
func (c *Client) unreachable(u *url.URL, cause error) error {
	if errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%s: %w", show(u), cause)
	}
	return c.note(&UnreachableError{URL: show(u), Cause: cause})
}

// Trouble notes what went wrong with the cache beyond its answers, such as wrong bytes, for Status.
func (c *Client) Trouble(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.lastAt = err, time.Now()
}

func (c *Client) note(e *UnreachableError) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.lastAt = e, time.Now()
	return e
}

// retryAfter reads the header in both its forms.
func retryAfter(h http.Header, now time.Time) time.Duration {
	s := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// discard reads what little an error page may hold, so that its connection can be used again.
func discard(body io.ReadCloser) {
	const most = 16 << 10 // bytes; more is cheaper to cut
	io.CopyN(io.Discard, body, most)
	body.Close()
}

// show prints a URL without credentials and query.
func show(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.Fragment, c.ForceQuery = nil, "", "", false
	return c.String()
}

// rttEstimate smooths answer times as TCP does (RFC 6298).
type rttEstimate struct{ smooth, vary time.Duration }

func (e *rttEstimate) add(d time.Duration) {
	if e.smooth == 0 {
		e.smooth, e.vary = d, d/2
		return
	}
	e.vary += ((e.smooth - d).Abs() - e.vary) / 4
	e.smooth += (d - e.smooth) / 8
}

// smallTimeout is how long to wait for a small answer's header: eight times what is usual, as a CDN's
// misses are slower than its hits, within the configured bounds.
func (c *Client) smallTimeout() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rtt.smooth == 0 {
		return c.t.NarInfo
	}
	return max(c.t.NarInfoFloor, min(c.t.NarInfo, 8*(c.rtt.smooth+4*c.rtt.vary)))
}
