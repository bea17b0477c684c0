package substituter

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// TestAStoppingAgentCutsWhereItCannotAnswer: Nix asks the successor again after a cut; a 404 would be its
// last word.
func TestAStoppingAgentCutsWhereItCannotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*mib)
		up := w.upstream("x", behaviour{hangOpen: true})
		s := w.start()
		ask := func(name string) {
			t.Helper()
			ctx, stop := context.WithCancel(t.Context()) // of the agent
			go func() {
				time.Sleep(time.Second)
				stop()
			}()
			rec := httptest.NewRecorder()
			defer func() {
				if e := recover(); e != http.ErrAbortHandler {
					t.Errorf("%s: answered with %d", name, rec.Code)
				}
			}()
			s.Handler(nil).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:6490/"+name, nil).WithContext(ctx))
		}
		ask(w.path.Hash().String() + ".narinfo")
		ask(w.narURL())
		up.become(honest)
		time.Sleep(time.Minute)
		if rec := get(s, w.path.Hash().String()+".narinfo"); rec == nil || rec.Code != http.StatusOK {
			t.Fatal("positive control")
		}
		up.become(behaviour{hangOpen: true})
		ask(w.narURL())
	})
}
