package upstream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	aHash = "0123456789abcdfghijklmnpqrsvwxyz"
	aDrv  = aHash + "-x-1.0.drv"
)

func TestOnlyKnownPathsAreForwarded(t *testing.T) {
	for path, want := range map[string]bool{
		"/" + aHash + ".ls": true,
		"/log/" + aDrv:      true,
		"/realisations/sha256:" + strings.Repeat("a", 64) + "!out.doi": true,
		"/build-trace-v2/" + aDrv + "/out.doi":                         true,
		"/debuginfo/" + strings.Repeat("a", 40):                        true,
		"/debuginfo/" + strings.Repeat("a", 40) + ".debug":             true,

		"":                                     false,
		"/":                                    false,
		"/nar/x.nar":                           false,
		"/" + aHash + ".narinfo":               false,
		"/log/../secret":                       false,
		"/log/" + aHash + "-x/../y":            false,
		"//log/" + aDrv:                        false,
		"/log/" + aDrv + "/":                   false,
		"/log/" + aDrv + "\n":                  false,
		"/build-trace-v2/" + aDrv + "/../.doi": false,
		"/debuginfo/..":                        false,
		"/log/" + aHash + "-" + strings.Repeat("x", maxForwardPath): false,
	} {
		if CanForward(path) != want {
			t.Errorf("%.90q: %v", path, !want)
		}
	}
}

// forward is a server as the substituter might be: errors become 404.
func forward(t *testing.T, c *Client, got *error) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *got = c.Forward(w, r); *got != nil {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestForwardedAnswersAreUntouched(t *testing.T) {
	var asked *http.Request
	body := compress(t, "br", bytes.Repeat([]byte("log\n"), 10_000))
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Encoding", "br")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Write(body)
	}))
	defer origin.Close()
	var err error
	c := newCache(t).client(func(cfg *Config) { cfg.URL = origin.URL })
	srv := forward(t, c, &err)
	tr := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	for _, method := range []string{"GET", "HEAD"} {
		req, _ := http.NewRequest(method, srv.URL+"/log/"+aHash+"-a%3Fb.drv?evil=1", nil)
		for _, h := range []string{"Cookie", "Authorization", "Origin", "Range", "If-None-Match", "X-Anything"} {
			req.Header.Set(h, "secret")
		}
		req.Header.Set("Accept-Encoding", "br, gzip")
		resp, rerr := tr.RoundTrip(req)
		if rerr != nil {
			t.Fatal(rerr)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if method == "GET" && !bytes.Equal(b, body) || resp.ContentLength != int64(len(body)) || err != nil {
			t.Errorf("%s: %d bytes, length %d, %v", method, len(b), resp.ContentLength, err)
		}
		if h := resp.Header; h.Get("Content-Encoding") != "br" || h.Get("Content-Type") != "text/html" || h.Get("Set-Cookie") != "" ||
			h.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("headers back: %v", h)
		}
		if asked.Method != method || asked.RequestURI != "/log/"+aHash+"-a%3Fb.drv" || strings.Contains(strings.Join(flat(asked.Header), " "), "secret") ||
			asked.Header.Get("Accept-Encoding") != "br, gzip" {
			t.Errorf("asked %s %s %v", asked.Method, asked.RequestURI, asked.Header)
		}
	}
}

func flat(h http.Header) (all []string) {
	for k, v := range h {
		all = append(append(all, k), v...)
	}
	return all
}

func TestForwardFaults(t *testing.T) {
	path := "/log/" + aDrv
	for fault, want := range map[string]error{
		"404": ErrAbsent, "500": ErrUnreachable, "close": ErrUnreachable, "hang": ErrUnreachable, "429:1": ErrUnreachable,
		"truncate": nil, "chunk-abort": nil, "stall": nil, "ok": nil, "chunked": nil,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			up := newCache(t)
			up.files[path] = random(300_000)
			up.fault(path, fault)
			var err error
			srv := forward(t, up.client(impatientWith(fault), func(cfg *Config) {
				if fault == "hang" {
					cfg.Timeouts.NarInfo = 50 * time.Millisecond
				}
			}), &err)
			resp, rerr := srv.Client().Get(srv.URL + path)
			if rerr != nil {
				t.Fatal(rerr)
			}
			b, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			switch {
			case want != nil:
				if !errors.Is(err, want) || resp.StatusCode != http.StatusNotFound {
					t.Errorf("%v, status %d", err, resp.StatusCode)
				}
			case fault == "ok" || fault == "chunked":
				if rerr != nil || !bytes.Equal(b, up.files[path]) {
					t.Error(rerr)
				}
			case rerr == nil:
				t.Errorf("a cut answer of %d bytes ended well", len(b))
			}
		})
	}
	var err error
	srv := forward(t, newCache(t).client(), &err)
	resp, rerr := srv.Client().Post(srv.URL+path, "", nil)
	if rerr != nil {
		t.Fatal(rerr)
	}
	resp.Body.Close()
	if !errors.Is(err, ErrForbidden) {
		t.Errorf("POST: %v", err)
	}
}
