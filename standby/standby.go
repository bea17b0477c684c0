// Package standby answers Nix in the agent's place when there is no agent to do it: nix-cache-info, and
// a quick 404 for all else, so that Nix goes on to the next cache at once. It serves two occasions:
//
//   - the agent itself, when its configuration is wrong ([Handler] on its own listeners);
//   - another process on the same listening socket ([Patient]), flurry-standby or the supervisor: it
//     takes a connection only when one has been waiting for longer than a living agent ever lets it.
//
// It must never say anything else, read anything, or take a connection from an agent that lives: a 404
// for a narinfo sticks in Nix for an hour.
//
// Format: Nix's binary cache protocol, of which this is the least.
package standby

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultPatience is how long connections wait before the stand-in answers: longer than a restart
	// of the agent takes, far shorter than the 300 s for which Nix bears silence.
	DefaultPatience = 3 * time.Second
	// relapse is the patience while the agent is known to be away, since the last connection was taken.
	relapse = 30 * time.Millisecond
	// burst is the patience for what already waits when a connection was taken: Nix asks for a whole
	// closure at once, and each question must not cost a relapse.
	burst = 5 * time.Millisecond
	// sample is the time between looks at a connection that waits.
	sample = 20 * time.Millisecond
	// takeTimeout bounds the taking itself: the agent may come back and be quicker.
	takeTimeout = 20 * time.Millisecond
)

// Handler answers as a cache of storeDir that has nothing.
func Handler(storeDir string, priority int) http.Handler {
	info := fmt.Sprintf("StoreDir: %s\nWantMassQuery: 1\nPriority: %d\n", storeDir, priority)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // the next request may find an agent
		if r.URL.Path == "/nix-cache-info" {
			w.Header().Set("Content-Type", "text/x-nix-cache-info")
			_, _ = w.Write([]byte(info))
			return
		}
		http.Error(w, "the Flurry agent does not answer", http.StatusNotFound)
	})
}

// Patient is a listener shared with an agent in another process. Accept takes a connection only after
// the queue was never seen empty for the whole patience.
type Patient struct {
	ln       *net.TCPListener
	patience time.Duration
	away     func(bool) // told when the agent is first found away, and when it is back; may be nil

	mu     sync.Mutex // one Accept at a time; guards gone
	gone   bool       // the agent did not answer last time
	closed chan struct{}
	once   sync.Once
	// wake is readable once Close was called: it ends a wait for connections.
	wake, waker *os.File
}

// NewPatient makes a Patient of ln. away may be nil; it must not block.
func NewPatient(ln *net.TCPListener, patience time.Duration, away func(bool)) (*Patient, error) {
	wake, waker, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("stand in on %s: %w", ln.Addr(), err)
	}
	return &Patient{ln: ln, patience: patience, away: away, closed: make(chan struct{}), wake: wake, waker: waker}, nil
}

// Tell returns what logs for a Patient that the agent is away, and back.
func Tell(log *slog.Logger) func(gone bool) {
	return func(gone bool) {
		if gone {
			log.Warn("the agent does not answer Nix; answering 404 in its place")
		} else {
			log.Info("the agent answers again")
		}
	}
}

// Addr implements net.Listener.
func (p *Patient) Addr() net.Addr { return p.ln.Addr() }

// Close implements net.Listener. A waiting Accept returns.
func (p *Patient) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.waker.Close()
		p.wake.Close()
	})
	return p.ln.Close()
}

// Accept implements net.Listener.
func (p *Patient) Accept() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for block := false; ; block = true {
		patience := p.patience
		if p.gone && !block {
			patience = min(burst, patience)
		} else if p.gone {
			patience = min(relapse, patience)
		}
		if waiting, err := p.waiting(block); err != nil {
			return nil, err
		} else if !waiting {
			continue
		}
		if ok, err := p.neglected(patience); err != nil {
			return nil, err
		} else if !ok {
			p.set(false)
			continue
		}
		_ = p.ln.SetDeadline(time.Now().Add(takeTimeout))
		conn, err := p.ln.Accept()
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			// Somebody else took it, or this machine is so busy that the time passed before the try.
			if waiting, err := p.waiting(false); err == nil && !waiting {
				p.set(false)
			}
			continue
		}
		if err == nil {
			p.set(true)
		}
		return conn, err
	}
}

// set notes whether the agent is away.
func (p *Patient) set(gone bool) {
	if gone != p.gone && p.away != nil {
		p.away(gone)
	}
	p.gone = gone
}

// neglected watches a queue that is not empty, and tells whether it stays so for as long as patience.
func (p *Patient) neglected(patience time.Duration) (bool, error) {
	for until := time.Now().Add(patience); time.Now().Before(until); {
		select {
		case <-p.closed:
			return false, net.ErrClosed
		case <-time.After(min(sample, patience)):
		}
		if waiting, err := p.waiting(false); err != nil || !waiting {
			return false, err
		}
	}
	return true, nil
}

// waiting tells whether a connection waits to be accepted, with block after waiting for one.
func (p *Patient) waiting(block bool) (bool, error) {
	sc, err := p.ln.SyscallConn()
	if err != nil {
		return false, err
	}
	quit, err := p.wake.SyscallConn()
	if err != nil {
		return false, net.ErrClosed
	}
	timeout := 0
	if block {
		timeout = -1
	}
	fds := []unix.PollFd{{Events: unix.POLLIN}, {Events: unix.POLLIN}}
	cerr := sc.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		if quit.Control(func(fd uintptr) {
			fds[1].Fd = int32(fd)
			_, err = unix.Poll(fds, timeout)
		}) != nil {
			err = net.ErrClosed
		}
	})
	switch {
	case cerr != nil:
		return false, cerr
	case fds[1].Revents != 0:
		return false, net.ErrClosed
	case errors.Is(err, unix.EINTR):
		return false, nil
	}
	return fds[0].Revents != 0, err
}
