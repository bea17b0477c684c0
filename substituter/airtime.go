package substituter

import (
	"sync"
	"time"
)

// airtime adds up the time in which at least one NAR is on its way. The zero value is ready; mu guards
// all fields.
type airtime struct {
	mu    sync.Mutex
	up    int
	since time.Time
	sum   time.Duration
}

// began counts a flight until the function that it returns is called.
func (a *airtime) began() (landed func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up++; a.up == 1 {
		a.since = time.Now()
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.up--; a.up == 0 {
			a.sum += time.Since(a.since)
		}
	}
}

func (a *airtime) total() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up > 0 {
		return a.sum + time.Since(a.since)
	}
	return a.sum
}

// Busy returns how long at least one NAR was on its way, since the start.
func (s *Server) Busy() time.Duration { return s.flights.air.total() }
