package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/flurry-nix/flurry/status"
)

// maxPause bounds a pause; what is meant to last longer is meant to last until resumed.
const maxPause = 365 * 24 * time.Hour

// Handler answers for a. It does not ask who is there; [Serve] does.
func Handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	answer(mux, "GET /status", a.Report != nil, func(*http.Request) (any, error) { return a.Report(), nil })
	answer(mux, "GET /peers", a.Report != nil, func(*http.Request) (any, error) {
		peers := a.Report().Peers
		if peers == nil {
			peers = []status.Peer{} // a list, also when empty
		}
		return peers, nil
	})
	answer(mux, "GET /id", a.ID != nil, func(*http.Request) (any, error) { return a.ID(), nil })
	answer(mux, "GET /keys", a.Keys != nil, func(*http.Request) (any, error) { return a.Keys(), nil })
	answer(mux, "GET /doctor", a.Doctor != nil, func(r *http.Request) (any, error) { return a.Doctor(r.Context()), nil })
	answer(mux, "GET /locate", a.Locate != nil, func(r *http.Request) (any, error) {
		t, err := ParseTarget(r.FormValue("path"))
		if err != nil {
			return nil, badRequest{err}
		}
		loc, err := a.Locate(r.Context(), t)
		if loc.Sources == nil {
			loc.Sources = []Source{}
		}
		return loc, err
	})
	answer(mux, "POST /pause", a.Pause != nil, func(r *http.Request) (any, error) {
		d, err := pauseDuration(r.FormValue("duration"))
		if err != nil {
			return nil, badRequest{err}
		}
		return a.Pause(d), nil
	})
	answer(mux, "POST /resume", a.Resume != nil, func(*http.Request) (any, error) { return a.Resume(), nil })
	answer(mux, "POST /login", a.Login != nil, func(*http.Request) (any, error) { return a.Login(), nil })
	answer(mux, "POST /cache/clear", a.Clear != nil, func(r *http.Request) (any, error) {
		what := What(r.FormValue("what"))
		switch what {
		case ClearAll, ClearNarInfos, ClearNegative, ClearNARs:
			return a.Clear(r.Context(), what)
		}
		return nil, badRequest{fmt.Errorf("%.40q cannot be cleared; name all, narinfos, negative or nars", what)}
	})
	if a.Cache != nil {
		mux.Handle("GET /cache/", http.StripPrefix("/cache", asLocalhost(a.Cache))) // GET means HEAD, too
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Errorf("the agent does not know %.60q; it is another version than this program", r.URL.Path))
	})
	return mux
}

func pauseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > maxPause {
		return 0, fmt.Errorf("%.40q is no time to pause for; write 10m, 2h and the like, up to a year", s)
	}
	return d, nil
}

// badRequest is the asker's fault.
type badRequest struct{ error }

func answer(mux *http.ServeMux, pattern string, able bool, f func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if !able {
			fail(w, http.StatusNotImplemented, fmt.Errorf("this agent cannot do that"))
			return
		}
		v, err := f(r)
		switch err.(type) {
		case nil:
			status.WriteJSON(w, v)
		case badRequest:
			fail(w, http.StatusBadRequest, err)
		default:
			fail(w, http.StatusInternalServerError, err)
		}
	})
}

func fail(w http.ResponseWriter, code int, err error) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	status.WriteJSON(w, Failure{Error: err.Error()})
}

// asLocalhost passes requests on under a name that the substituter answers to: a socket has none.
func asLocalhost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.Host = "localhost"
		h.ServeHTTP(w, r)
	})
}

// peerKey finds the verdict on who connected in a request's context.
type peerKey struct{}

// guard lets only those in whom the kernel vouches for; what Serve's ConnContext found out.
func guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err, known := r.Context().Value(peerKey{}).(verdict)
		if !known || err.refused != nil {
			fail(w, http.StatusForbidden, fmt.Errorf("not allowed; be root, the agent's user or a member of group %s", Group))
			return
		}
		h.ServeHTTP(w, r)
	})
}

type verdict struct{ refused error }

func withVerdict(ctx context.Context, err error) context.Context {
	return context.WithValue(ctx, peerKey{}, verdict{err})
}
