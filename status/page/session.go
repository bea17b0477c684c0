package page

import (
	"crypto/rand"
	"crypto/sha256"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// TokenLife is how long a login link works: long enough to copy it to a browser.
	TokenLife   = 2 * time.Minute
	sessionLife = 12 * time.Hour // a working day
	maxTokens   = 16             // links not used yet
	maxSessions = 64
)

// cookieName carries the port, since browsers send cookies to every port of a host.
func cookieName(r *http.Request) string {
	_, port, _ := net.SplitHostPort(r.Host)
	return "flurry_session_" + port
}

// sessions holds the secrets of this run of the agent, as digests: a look-up tells nothing by its time.
type sessions struct {
	now func() time.Time

	mu       sync.Mutex // guards all below
	tokens   map[[32]byte]time.Time
	sessions map[[32]byte]time.Time
}

func newSessions(now func() time.Time) sessions {
	return sessions{now: now, tokens: map[[32]byte]time.Time{}, sessions: map[[32]byte]time.Time{}}
}

func (s *sessions) token() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issue(s.tokens, TokenLife, maxTokens)
}

// exchange uses a token up and returns a new session.
func (s *sessions) exchange(token string) (session string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := sha256.Sum256([]byte(token))
	until, ok := s.tokens[d]
	delete(s.tokens, d)
	if !ok || !s.now().Before(until) {
		return "", false
	}
	return s.issue(s.sessions, sessionLife, maxSessions), true
}

func (s *sessions) known(session string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.sessions[sha256.Sum256([]byte(session))]
	return ok && s.now().Before(until)
}

// issue makes a secret of 128 bits; the one that ends first makes room. mu is held.
func (s *sessions) issue(in map[[32]byte]time.Time, life time.Duration, most int) string {
	var oldest [32]byte
	for d, until := range in {
		if !s.now().Before(until) {
			delete(in, d)
		} else if first, ok := in[oldest]; !ok || until.Before(first) {
			oldest = d
		}
	}
	if len(in) >= most {
		delete(in, oldest)
	}
	secret := rand.Text()
	in[sha256.Sum256([]byte(secret))] = s.now().Add(life)
	return secret
}
