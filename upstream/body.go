package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/flurry-nix/flurry/verify"
)

const (
	// maxTries is how many attempts in a row may fail to bring progressBytes. Nix itself makes five.
	maxTries = 5
	// progressBytes earn a download its attempts anew, so that a large NAR survives a flaky link. They
	// also bound the attempts, by its size.
	progressBytes = 1 << 20
	// minRate is how slow a body may become, in bytes per second spent waiting for it.
	minRate = 256
	// finishIdle is how long to wait for the end of a file whose NAR is already complete.
	finishIdle = time.Second
)

// body streams one file as the cache stores it and, when the connection breaks, goes on at the byte
// where it broke. It is read by one goroutine.
type body struct {
	c      *Client
	ctx    context.Context
	abort  context.CancelCauseFunc // ends ctx
	url    *url.URL
	limit  int64 // no honest file has more bytes
	hint   int64 // what the narinfo says of its size, 0: nothing
	label  string
	first  *ticket // for the first attempt
	urgent bool    // the breaker was open: one attempt only

	off       int64 // next byte of the file
	total     int64 // of the file, -1: unknown
	etag      string
	noRanges  bool
	rc        io.ReadCloser
	watch     *time.Timer // ends rc's request unless stopped in time
	cancel    context.CancelCauseFunc
	rctx      context.Context
	rcErr     error // why rc is over
	err       error // sticks
	tries     int
	lastOff   int64 // where the last attempt began
	pause     backoff.ExponentialBackOff
	waited    time.Duration // in the current window
	windowed  int64         // bytes in it
	received  atomic.Int64
	broke     atomic.Pointer[time.Time] // when a connection last failed
	finishing atomic.Bool               // the NAR is complete; don't fight for the rest
}

// connect makes attempts until one brings an answer. cause is what ended the one before, nil at first.
func (b *body) connect(cause error) error {
	if b.off-b.lastOff >= progressBytes {
		b.tries = 0
		b.pause.Reset()
	}
	var slept time.Duration
	for {
		if cause != nil {
			now := time.Now()
			b.broke.Store(&now)
			if b.ctx.Err() != nil || b.tries >= maxTries || b.noRanges || b.urgent || b.finishing.Load() {
				return cause
			}
			delay := b.pause.NextBackOff()
			var un *UnreachableError
			if errors.As(cause, &un) {
				delay = max(delay, un.retryAfter)
			}
			if slept += delay; b.received.Load() == 0 && slept > b.c.t.StartWait {
				return cause
			}
			if err := sleep(b.ctx, delay); err != nil {
				return cause
			}
		}
		b.tries++
		b.lastOff = b.off
		err := b.open()
		if cause != nil && errors.Is(err, ErrChanged) {
			err = fmt.Errorf("%w (after: %v)", err, cause)
		}
		if err == nil || !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnauthorized) {
			return err
		}
		if b.received.Load() > 0 {
			b.c.log.Debug("NAR download broke", "url", show(b.url), "offset", b.off, "error", err)
		}
		cause = err
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// open makes one attempt at b.off.
func (b *body) open() error {
	header := http.Header{}
	if b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
		if b.etag != "" {
			header.Set("If-Range", b.etag)
		}
	}
	ticket := b.first
	if b.first = nil; ticket == nil {
		ticket = b.c.breaker.attend()
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	resp, err := b.c.ask(request{ctx: ctx, cancel: cancel, method: http.MethodGet, url: b.url, header: header, timeout: b.c.t.Header, ticket: ticket})
	if err == nil {
		if err = b.accept(resp); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		cancel(nil)
		return err
	}
	b.rc, b.rctx, b.cancel, b.rcErr = resp.Body, ctx, cancel, nil
	b.watch = time.AfterFunc(time.Hour, func() { cancel(errIdle) })
	b.watch.Stop()
	b.waited, b.windowed = 0, 0
	return nil
}

// accept checks that an answer continues the file at b.off.
func (b *body) accept(resp *http.Response) error {
	if e := strings.TrimPrefix(strings.ToLower(resp.Header.Get("Content-Encoding")), "x-"); e != "" && e != "identity" && e != b.label {
		return fmt.Errorf("%s: %w: Content-Encoding %.40q", show(b.url), verify.ErrMalformed, e)
	}
	fresh := b.received.Load() == 0
	switch resp.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		if _, total, ok := contentRange(resp.Header); ok && total == b.off {
			b.total = b.off // so that was all
			return nil
		}
		return fmt.Errorf("%s: %w: no byte %d any more", show(b.url), ErrChanged, b.off)
	case http.StatusPartialContent:
		start, total, ok := contentRange(resp.Header)
		if !ok || start != b.off || b.total >= 0 && total >= 0 && total != b.total || !b.sameTag(resp) {
			return fmt.Errorf("%s: %w: another range or file came", show(b.url), ErrChanged)
		}
		if total >= 0 {
			b.total = total
		}
	default:
		if !fresh {
			return fmt.Errorf("%s: %w at byte %d: the server sent the whole file", show(b.url), ErrChanged, b.off)
		}
		b.off, b.lastOff = 0, 0
		b.total = resp.ContentLength
		b.noRanges = resp.Header.Get("Accept-Ranges") == "none"
	}
	if b.total > b.limit {
		return fmt.Errorf("%s: file of %d bytes: %w", show(b.url), b.total, verify.ErrTooLarge)
	}
	if fresh {
		b.etag = resp.Header.Get("Etag")
		if b.etag == "" || strings.HasPrefix(b.etag, "W/") {
			b.etag = resp.Header.Get("Last-Modified")
		}
	}
	return nil
}

func (b *body) sameTag(resp *http.Response) bool {
	tag := resp.Header.Get("Etag")
	return tag == "" || !strings.HasPrefix(b.etag, `"`) || tag == b.etag
}

// contentRange reads "bytes 5-9/10", "bytes 5-9/*" (total -1) and "bytes */10" (start -1).
func contentRange(h http.Header) (start, total int64, ok bool) {
	s, ok := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	if !ok || !ok2 {
		return 0, 0, false
	}
	first, _, _ := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if span == "*" {
		start, err = -1, nil
	}
	total = -1
	var err2 error
	if size != "*" {
		total, err2 = strconv.ParseInt(size, 10, 64)
	}
	return start, total, err == nil && err2 == nil && start >= -1 && total >= -1
}

// Read implements io.Reader. Its errors stick.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.err == nil {
		if b.total >= 0 && b.off >= b.total {
			b.err = io.EOF
			break
		}
		if b.rcErr == nil {
			n, err := b.readOnce(p)
			b.off += int64(n)
			b.received.Add(int64(n))
			b.c.wire.Add(int64(n))
			if n > 0 {
				b.c.heard.Store(time.Now().UnixNano())
			}
			b.rcErr = err
			if b.off > b.limit {
				b.err = fmt.Errorf("more than %d bytes: %w", b.limit, verify.ErrTooLarge)
				break
			}
			if n > 0 {
				return n, nil
			}
			continue
		}
		b.err = b.goOn()
	}
	return 0, b.err
}

// goOn decides what the end of a connection means, and resumes if it was not the file's.
func (b *body) goOn() error {
	cause := b.rcErr
	b.hangUp()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if cause == io.EOF {
		if b.total >= 0 {
			cause = io.ErrUnexpectedEOF
		} else if b.off >= b.hint || b.connect(b.c.note(&UnreachableError{URL: show(b.url), Cause: io.ErrUnexpectedEOF})) != nil {
			return io.EOF // without a length, the end of the stream is the end of the file
		} else {
			return nil
		}
	}
	return b.connect(b.c.note(&UnreachableError{URL: show(b.url), Cause: cause}))
}

// readOnce reads from the current connection, which must make progress.
func (b *body) readOnce(p []byte) (int, error) {
	idle := b.c.t.Idle
	if b.finishing.Load() {
		idle = min(idle, finishIdle)
	}
	start := time.Now()
	b.watch.Reset(idle)
	n, err := b.rc.Read(b.c.limit.Piece(p))
	b.watch.Stop()
	if err != nil && err != io.EOF && context.Cause(b.rctx) != nil {
		err = context.Cause(b.rctx)
	}
	b.windowed += int64(n)
	if b.waited += time.Since(start); b.waited >= b.c.t.SlowWindow {
		if err == nil && float64(b.windowed) < minRate*b.waited.Seconds() {
			err = errTooSlow
		}
		b.waited, b.windowed = 0, 0
	}
	if werr := b.c.limit.Wait(b.rctx, n); werr != nil && err == nil {
		err = werr
	}
	return n, err
}

// hangUp ends the current connection's request.
func (b *body) hangUp() {
	if b.rc == nil {
		return
	}
	b.watch.Stop()
	b.cancel(nil)
	b.rc.Close()
	b.rc = nil
}
