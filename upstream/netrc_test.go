package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestNetrcIsReadAsCurlReadsIt(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want credentials
		ok   bool
	}{
		"one line":           {"machine c.example login me password s3cret", credentials{"me", "s3cret"}, true},
		"several lines":      {"machine\n\tc.example\r\n\n login me\npassword s3cret\n", credentials{"me", "s3cret"}, true},
		"a token alone":      {"machine c.example\npassword s3cret\n", credentials{"", "s3cret"}, true},
		"as cachix writes":   {"machine c.example login \"\" password s3cret", credentials{"", "s3cret"}, true},
		"another order":      {"machine c.example password s3cret login me", credentials{"me", "s3cret"}, true},
		"case of a name":     {"machine C.Example password s3cret", credentials{"", "s3cret"}, true},
		"the first counts":   {"machine c.example password one machine c.example password two", credentials{"", "one"}, true},
		"others' secrets":    {"machine a password x\nmachine c.example password s3cret\nmachine b login y password z", credentials{"", "s3cret"}, true},
		"no prefix":          {"machine example password x\nmachine xc.example password y", credentials{}, false},
		"the default":        {"machine a password x\ndefault login me password s3cret", credentials{"me", "s3cret"}, true},
		"before the default": {"machine c.example password s3cret\ndefault login me", credentials{"", "s3cret"}, true},
		"comments":           {"# machine c.example password no\nmachine c.example # password no\npassword s3cret", credentials{"", "s3cret"}, true},
		"macros":             {"macdef init\nmachine c.example password no\n\nmachine c.example password s3cret", credentials{"", "s3cret"}, true},
		"quoted":             {`machine c.example login "me \"&\" you" password "a b#\\"`, credentials{`me "&" you`, `a b#\`}, true},
		"hash in a word":     {"machine c.example password s3#cret", credentials{"", "s3#cret"}, true},
		"account":            {"machine c.example account a password s3cret", credentials{"", "s3cret"}, true},
		"empty":              {"", credentials{}, false},
	} {
		got, ok, err := parseNetrc(tc.text, "c.example")
		if err != nil || ok != tc.ok || got != tc.want {
			t.Errorf("%s: %+v %v %v", name, got, ok, err)
		}
	}
	for _, bad := range []string{"password", "machine c.example secret", "\"machine c.example"} {
		if _, _, err := parseNetrc(bad, "c.example"); err == nil {
			t.Errorf("%q is taken for a netrc file", bad)
		}
	}
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine c.example login \"m\\\"e\" password x\nmacdef a\nb\n\ndefault # y\n")
	f.Fuzz(func(t *testing.T, text string) {
		if c, ok, err := parseNetrc(text, "c.example"); (!ok || err != nil) && (ok && err != nil || c != credentials{}) {
			t.Errorf("%q gives %+v beside %v", text, c, err)
		}
	})
}

func TestRefusedCredentialsAreNoAbsenceAndHeal(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	refuse := true
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(up.files[r.URL.Path])
	}))
	defer front.Close()
	c := up.client(func(cfg *Config) { cfg.URL = front.URL })
	for range 20 { // it answers: no reason to leave it alone
		if _, _, err := c.NarInfo(context.Background(), h); errors.Is(err, ErrAbsent) || !errors.Is(err, ErrUnauthorized) {
			t.Fatal(err)
		}
	}
	if s := c.Status(); !s.Denied || s.Reachable || s.Breaker != "closed" || s.Requests != 20 || s.LastError == "" {
		t.Errorf("%+v", s)
	}
	refuse = false
	mustNarInfo(t, c, h)
	if s := c.Status(); s.Denied || !s.Reachable {
		t.Errorf("after it let us in: %+v", s)
	}
}
