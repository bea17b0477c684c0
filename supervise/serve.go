package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Serve answers HTTP on the listeners until ctx ends or one of them fails. Then it accepts no more,
// gives what was accepted up to grace to be answered, cuts the rest and returns; nil if ctx ended.
//
// http.Server.Shutdown alone is not enough where a successor takes the listeners over: it drops
// requests that were read, but not yet answered, when it is called.
func Serve(ctx context.Context, srv *http.Server, listeners []net.Listener, grace time.Duration) error {
	busy := newBusyConns(srv.ConnState)
	srv.ConnState = busy.note
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for _, ln := range listeners {
		serving.Go(func() {
			if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
				cancel(fmt.Errorf("serve on %s: %w", ln.Addr(), err))
			}
		})
	}
	<-ctx.Done()
	for _, ln := range listeners {
		ln.Close()
	}
	serving.Wait() // now every connection that was accepted is known
	srv.SetKeepAlivesEnabled(false)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-busy.none():
	case <-timer.C:
	}
	srv.Close()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// busyConns knows the connections that owe or may owe an answer: new and active ones.
type busyConns struct {
	next func(net.Conn, http.ConnState) // nil or the server's own hook

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	empty chan struct{} // nil, or to be closed when conns is empty
}

func newBusyConns(next func(net.Conn, http.ConnState)) *busyConns {
	return &busyConns{next: next, conns: map[net.Conn]struct{}{}}
}

// note implements http.Server.ConnState.
func (b *busyConns) note(c net.Conn, state http.ConnState) {
	if b.next != nil {
		b.next(c, state)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		b.conns[c] = struct{}{}
		return
	}
	delete(b.conns, c)
	if len(b.conns) == 0 && b.empty != nil {
		close(b.empty)
		b.empty = nil
	}
}

// none returns a channel that is closed once no connection is busy. To be called once.
func (b *busyConns) none() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan struct{})
	if len(b.conns) == 0 {
		close(ch)
		return ch
	}
	b.empty = ch
	return ch
}
