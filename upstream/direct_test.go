package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// scripted answers each question with the next of the texts, on whichever connection it comes; after one that ends
// with "CLOSE" the connection is closed. It returns what asks it directly, and its address.
func scripted(t *testing.T, answers ...string) (d *direct, url string, dialled *atomic.Int32) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	next := make(chan string, len(answers))
	for _, a := range answers {
		next <- a
	}
	close(next)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for r := bufio.NewReader(conn); ; {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					text, last := strings.CutSuffix(<-next, "CLOSE")
					if _, err := io.WriteString(conn, text); err != nil || last {
						return
					}
				}
			}()
		}
	}()
	dialled = new(atomic.Int32)
	d = &direct{dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	t.Cleanup(d.closeIdle)
	return d, "http://" + ln.Addr().String() + "/x.narinfo", dialled
}

func askDirectly(ctx context.Context, d *direct, url string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := d.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

const yes = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"

func TestAConnectionIsUsedAgainOnlyAfterAWholeAnswer(t *testing.T) {
	for name, k := range map[string]struct {
		first, body string
		fails       bool
		dialled     int32
	}{
		"of known length":       {yes, "yes", false, 1},
		"in chunks":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n", "yes", false, 1},
		"empty":                 {"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "", false, 1},
		"after hints":           {"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + yes, "yes", false, 1},
		"of HTTP/1.0":           {"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nyesCLOSE", "yes", false, 2},
		"that ends with it":     {"HTTP/1.1 200 OK\r\n\r\nyesCLOSE", "yes", false, 2},
		"announced as the last": {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nyes", "yes", false, 2},
		"with more after it":    {yes + "HTTP/1.1 408 Request Timeout\r\n\r\n", "yes", false, 2},
		"cut in its body":       {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nyesCLOSE", "yes", true, 2},
		"cut in its header":     {"HTTP/1.1 200 OK\r\nContent-CLOSE", "", true, 2},
		"none at all":           {"CLOSE", "", true, 2},
		"an upgrade":            {"HTTP/1.1 101 Switching Protocols\r\n\r\n", "", true, 2},
		"of endless header":     {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", maxHeader/1000+1), "", true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			d, url, dialled := scripted(t, k.first, yes)
			if _, body, err := askDirectly(t.Context(), d, url); body != k.body || (err != nil) != k.fails {
				t.Errorf("%q, %v", body, err)
			}
			if status, body, err := askDirectly(t.Context(), d, url); status != 200 || body != "yes" || err != nil {
				t.Errorf("then %d, %q, %v", status, body, err)
			}
			if n := dialled.Load(); n != k.dialled {
				t.Errorf("%d connections, want %d", n, k.dialled)
			}
		})
	}
}

// A server that closed an idle connection, perhaps with a word, is no server in trouble.
func TestAnIdleConnectionThatDiedCostsNothing(t *testing.T) {
	for name, text := range map[string]string{"without a word": "", "with a word": "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pipeTCP(t)
			d, url, _ := scripted(t, yes)
			c := &directConn{Conn: ours, addr: strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/x.narinfo")}
			c.r, c.w = bufio.NewReader(c), bufio.NewWriter(ours)
			d.keep(c)
			if !c.silent() {
				t.Error("a connection on which nothing came is taken for dead")
			}
			io.WriteString(theirs, text)
			theirs.Close()
			if status, _, err := askDirectly(t.Context(), d, url); status != 200 || err != nil {
				t.Errorf("%d, %v", status, err)
			}
		})
	}
	t.Run("while it is asked", func(t *testing.T) {
		d, url, dialled := scripted(t, yes, "CLOSE", yes)
		for range 2 {
			if status, _, err := askDirectly(t.Context(), d, url); status != 200 || err != nil {
				t.Errorf("%d, %v", status, err)
			}
		}
		if dialled.Load() != 2 {
			t.Errorf("%d connections", dialled.Load())
		}
	})
}

func pipeTCP(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestACancelledQuestionEndsAtOnce(t *testing.T) {
	for name, text := range map[string]string{"before the header": "", "in the body": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nyes"} {
		t.Run(name, func(t *testing.T) {
			d, url, dialled := scripted(t, text, yes)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			if _, _, err := askDirectly(ctx, d, url); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("error %v", err)
			}
			if status, _, err := askDirectly(t.Context(), d, url); status != 200 || err != nil || dialled.Load() != 2 {
				t.Errorf("then %d, %v on connection %d", status, err, dialled.Load())
			}
		})
	}
}

func TestIdleConnectionsAreBoundedInNumberAndTime(t *testing.T) {
	d := &direct{}
	defer d.closeIdle()
	for i := range idleConns + 5 {
		a, _ := pipeTCP(t)
		d.keep(&directConn{Conn: a})
		if i < 3 {
			d.idle[i].since = time.Now().Add(-2 * idleConnTime)
		}
	}
	if len(d.idle) != idleConns {
		t.Errorf("%d are kept", len(d.idle))
	}
	d.closeOld()
	if len(d.idle) != idleConns-3 {
		t.Errorf("%d are kept later", len(d.idle))
	}
}
