package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// maxSoft is how many server errors (5xx) in a row open the breaker: one sick object is no sick cache.
const maxSoft = 5

// breaker spares callers the wait for a cache that just could not be reached. While it is open,
// questions fail at once; when its pause is over, one question at a time may probe. A failure counts
// only if nothing succeeded since that question began, so one lost answer among many good ones opens nothing.
type breaker struct {
	mu    sync.Mutex // guards all below
	pause backoff.ExponentialBackOff
	open  bool
	until time.Time     // while open: no probe before
	cause error         // while open: why
	probe chan struct{} // non-nil while a probe is under way; closed at its end
	okAt  time.Time     // of the latest success
	soft  int           // server errors since then
}

func (b *breaker) init(first, most time.Duration) {
	b.pause = backoff.ExponentialBackOff{InitialInterval: first, MaxInterval: most, Multiplier: 2, RandomizationFactor: 0.3}
	b.pause.Reset()
}

// ticket is leave to ask. Exactly one of its methods ok, fail, soft and drop must be called.
type ticket struct {
	b     *breaker
	began time.Time
	probe bool
}

// enter gives leave to ask, or returns why not. An urgent caller (a NAR whose loss would fail a build)
// probes before the pause is over, and joins a probe that is under way instead of failing.
func (b *breaker) enter(ctx context.Context, urgent bool) (*ticket, error) {
	joined := false
	for {
		b.mu.Lock()
		now := time.Now()
		switch {
		case !b.open:
			b.mu.Unlock()
			return &ticket{b: b, began: now}, nil
		case b.probe == nil && !joined && (urgent || !now.Before(b.until)):
			b.probe = make(chan struct{})
			b.mu.Unlock()
			return &ticket{b: b, began: now, probe: true}, nil
		case !urgent || joined || b.probe == nil:
			err := &UnreachableError{Cause: b.cause, RetryAt: b.until}
			b.mu.Unlock()
			return nil, err
		}
		probe := b.probe
		b.mu.Unlock()
		select {
		case <-probe:
			joined = true
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// attend gives a ticket without asking for leave, for a transfer that has begun.
func (b *breaker) attend() *ticket { return &ticket{b: b, began: time.Now()} }

// end finishes a probe. b.mu is held.
func (t *ticket) end() {
	if t.probe {
		close(t.b.probe)
		t.b.probe, t.probe = nil, false
	}
}

// ok tells that the cache answered. It closes the breaker.
func (t *ticket) ok() {
	b := t.b
	b.mu.Lock()
	defer b.mu.Unlock()
	t.end()
	b.open, b.cause, b.soft, b.okAt = false, nil, 0, time.Now()
	b.pause.Reset()
}

// fail tells that the cache could not be asked; it wants rest for retryAfter (0: it did not say).
// It returns when to ask again.
func (t *ticket) fail(cause error, retryAfter time.Duration) time.Time {
	b := t.b
	b.mu.Lock()
	defer b.mu.Unlock()
	probe := t.probe
	t.end()
	now := time.Now()
	if retryAfter <= 0 && (b.okAt.After(t.began) || b.open && !probe) {
		return b.until // old news, or one of many that failed together
	}
	until := now.Add(b.pause.NextBackOff())
	if retryAfter > 0 {
		until = now.Add(retryAfter)
	}
	if !b.open || until.After(b.until) {
		b.until = until
	}
	b.open, b.cause = true, cause
	return b.until
}

// serverError tells of a 5xx answer.
func (t *ticket) serverError(cause error) time.Time {
	t.b.mu.Lock()
	t.b.soft++
	many := t.b.soft >= maxSoft
	if !t.probe && !many {
		t.b.mu.Unlock()
		return time.Time{}
	}
	t.b.mu.Unlock()
	return t.fail(cause, 0)
}

// drop tells that nothing was learnt, as when the caller gave up.
func (t *ticket) drop() {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	t.end()
}

// state describes the breaker: "closed", "open" or "probing"; until and cause unless closed.
func (b *breaker) state() (name string, until time.Time, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.open:
		return "closed", time.Time{}, nil
	case b.probe != nil:
		return "probing", b.until, b.cause
	}
	return "open", b.until, b.cause
}
