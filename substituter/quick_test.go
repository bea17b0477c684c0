package substituter

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// listen serves s on loopback as an agent does; seen counts what reaches net/http.
func (w *world) listen(s *Server) (addr string, seen func() int) {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	requests := make(chan struct{}, 1000)
	h := s.Handler(nil)
	srv := &http.Server{ConnState: ConnState, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		requests <- struct{}{}
		if r.Method == http.MethodPost {
			io.Copy(io.Discard, r.Body)
		}
		h.ServeHTTP(rw, r)
	})}
	go srv.Serve(s.Listener(ln))
	w.t.Cleanup(func() { srv.Close() })
	return ln.Addr().String(), func() int { return len(requests) }
}

// step is what one write sends, and how many answers are read before the next.
type step struct {
	send    string
	answers int
}

// talk takes the steps on one connection and returns the answers' statuses, types and bodies.
func talk(t *testing.T, addr string, steps ...step) (out []string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	for _, s := range steps {
		if _, err := io.WriteString(c, s.send); err != nil {
			t.Fatal(err)
		}
		for range s.answers {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("answer %d: %v", len(out), err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%d %s\n%s", resp.StatusCode, resp.Header.Get("Content-Type"), b))
		}
	}
	return out
}

func TestQuickAnswersAreThoseOfNetHTTP(t *testing.T) {
	w := newWorld(t, 100)
	w.store.add(w.info, w.nar)
	absent := strings.Repeat("0", 32)
	w.upstream("x", behaviour{absent: true, corrupt: -1})
	s := w.start()
	addr, seen := w.listen(s)
	question := func(hash string) string {
		return "GET /" + hash + ".narinfo HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: curl/8 Nix/2.31\r\nAccept: */*\r\n\r\n"
	}
	known := w.path.Hash().String()
	var steps []step
	for _, hash := range []string{known, absent, known, absent, known} {
		steps = append(steps, step{question(hash), 1})
	}
	got := talk(t, addr, steps...)
	if got[0] != got[2] || got[0] != got[4] || got[1] != got[3] || !strings.HasPrefix(got[0], "200 text/x-nix-narinfo\nStorePath: ") || !strings.HasPrefix(got[1], "404 ") {
		t.Errorf("answers differ: %q", got)
	}
	if n := seen(); n != 1 {
		t.Errorf("net/http saw %d requests, want the connection's first", n)
	}
	if h, m := s.Stats.NarInfoHits.Load(), s.Stats.NarInfoMisses.Load(); h != 3 || m != 2 {
		t.Errorf("counted %d hits and %d misses", h, m)
	}
}

// What is not a plain, whole question from a client on loopback goes the long way, with its checks.
func TestOnlyPlainQuestionsAreQuick(t *testing.T) {
	w := newWorld(t, 100)
	w.store.add(w.info, w.nar)
	s := w.start()
	addr, seen := w.listen(s)
	line := "GET /" + w.path.Hash().String() + ".narinfo HTTP/1.1\r\n"
	host := "Host: " + addr + "\r\n"
	first := step{line + host + "\r\n", 1}
	post := fmt.Sprintf("POST / HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", host, len(first.send))
	for name, c := range map[string]struct {
		steps []step
		want  string // statuses
		seen  int    // requests that reach the handler
	}{
		"a foreign host":        {[]step{first, {line + "Host: evil.example\r\n\r\n", 1}}, "200 403", 2},
		"two hosts":             {[]step{first, {line + host + host + "\r\n", 1}}, "200 400", 1},
		"no host":               {[]step{first, {line + "\r\n", 1}}, "200 400", 1},
		"another site":          {[]step{first, {line + host + "Origin: http://evil.example\r\n\r\n", 1}}, "200 403", 2},
		"fetch metadata":        {[]step{first, {line + host + "Sec-Fetch-Site: cross-site\r\n\r\n", 1}}, "200 403", 2},
		"a question in a body":  {[]step{first, {post, 0}, {first.send, 1}, first}, "200 405 200", 3},
		"the same in one":       {[]step{first, {post + first.send, 1}, first}, "200 405 200", 3},
		"a question in pieces":  {[]step{first, {line, 0}, {host + "\r\n", 1}, first}, "200 200 200", -1}, // they may arrive as one
		"one inside a header":   {[]step{first, {"GET /x HTTP/1.1\r\n" + host, 0}, {"X: y\r\n", 0}, {first.send, 1}}, "200 400", 1},
		"two questions at once": {[]step{first, {first.send + first.send, 2}, first}, "200 200 200 200", 4},
	} {
		t.Run(name, func(t *testing.T) {
			before := seen()
			var got []string
			for _, a := range talk(t, addr, c.steps...) {
				got = append(got, a[:3])
			}
			if g := strings.Join(got, " "); g != c.want {
				t.Errorf("statuses %s, want %s", g, c.want)
			}
			if n := seen() - before; c.seen >= 0 && n != c.seen {
				t.Errorf("the handler saw %d requests, want %d", n, c.seen)
			}
		})
	}
}

// TestQuestionsNewToTheAgentAreQuickToo: the connection waits for the sources itself.
func TestQuestionsNewToTheAgentAreQuickToo(t *testing.T) {
	w := newWorld(t, 100)
	w.upstream("x", honest)
	addr, seen := w.listen(w.start())
	get := func(path string) step {
		return step{"GET /" + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n", 1}
	}
	got := talk(t, addr, get("nix-cache-info"), get(w.path.Hash().String()+".narinfo"))
	if !strings.HasPrefix(got[1], "200 text/x-nix-narinfo\nStorePath: ") || seen() != 1 {
		t.Errorf("%d requests reached net/http; %q", seen(), got)
	}
}

// TestNoAnswerIsAQuickMiss: no source can be asked, and Nix is told so with 404 at once.
func TestNoAnswerIsAQuickMiss(t *testing.T) {
	w := newWorld(t, 100)
	w.upstream("x", behaviour{refuse: true, corrupt: -1})
	s := w.start()
	s.finder.started = time.Now().Add(-time.Minute) // neighbours have been found
	addr, seen := w.listen(s)
	get := func(path string) step {
		return step{"GET /" + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n", 1}
	}
	question := get(w.path.Hash().String() + ".narinfo")
	long := talk(t, addr, question)
	got := talk(t, addr, get("nix-cache-info"), question)
	if got[1] != long[0] || !strings.HasPrefix(got[1], "404 ") || seen() != 2 {
		t.Errorf("%d requests reached net/http; %q, the long way %q", seen(), got, long)
	}
	if n := s.Stats.NarInfoMisses.Load(); n != 2 {
		t.Errorf("counted %d misses", n)
	}
}

func TestASmallNAROfTheStoreIsQuick(t *testing.T) {
	w := newWorld(t, 3000)
	w.store.add(w.info, w.nar)
	s := w.start()
	addr, seen := w.listen(s)
	head := "GET /%s HTTP/1.1\r\nHost: " + addr + "\r\n%s\r\n"
	narInfo := step{fmt.Sprintf(head, w.path.Hash().String()+".narinfo", ""), 1}
	nar := step{fmt.Sprintf(head, w.narURL(), ""), 1}
	got := talk(t, addr, nar, narInfo, nar, step{fmt.Sprintf(head, w.narURL(), "Range: bytes=5-8\r\n"), 1}, nar)
	want := "200 application/x-nix-nar\n" + string(w.nar)
	if got[0] != want || got[2] != want || got[4] != want || got[3] != "206 application/x-nix-nar\n"+string(w.nar[5:9]) {
		t.Error("answers differ")
	}
	if n := seen(); n != 2 {
		t.Errorf("net/http saw %d requests, want the first and the range", n)
	}
	served := func() [3]int64 {
		return [3]int64{s.Stats.Served.Load(), s.Stats.FromStore.Load(), s.Stats.ToNix.Load()}
	}
	bytes := int64(3*len(w.nar) + 4)
	for n := 0; served()[0] != 4 && n < 1000; n++ { // an answer is counted once it is sent
		time.Sleep(2 * time.Millisecond)
	}
	if served() != [3]int64{4, bytes, bytes} {
		t.Errorf("counted %d NARs and bytes from the store and to Nix, want 4 and %d", served(), bytes)
	}
}

// TestASlowReaderGetsItsNARWhole: longer than the kernel waits for room to send, on a connection that asks alone.
func TestASlowReaderGetsItsNARWhole(t *testing.T) {
	w := newWorld(t, 20<<20)
	w.store.add(w.info, w.nar)
	addr, _ := w.listen(w.start())
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	head := "GET /%s HTTP/1.1\r\nHost: " + addr + "\r\n\r\n"
	for _, name := range []string{"nix-cache-info", w.path.Hash().String() + ".narinfo", w.narURL()} {
		fmt.Fprintf(c, head, name)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		for err == nil && name == w.narURL() {
			time.Sleep(20 * time.Millisecond)
			_, err = io.CopyN(&got, resp.Body, 6<<20)
		}
		if io.Copy(&got, resp.Body); name == w.narURL() && !bytes.Equal(got.Bytes(), w.nar) {
			t.Errorf("got %d bytes of %d: %v", got.Len(), len(w.nar), err)
		}
	}
}

func TestADamagedPathIsNotQuick(t *testing.T) {
	w := newWorld(t, 3000)
	w.store.add(w.info, w.nar[:100]) // not as long as was signed
	w.upstream("x", honest)
	addr, seen := w.listen(w.start())
	get := func(path string) step {
		return step{"GET /" + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n", 1}
	}
	got := talk(t, addr, get("nix-cache-info"), get(w.path.Hash().String()+".narinfo"), get(w.narURL()))
	if got[2] != "200 application/x-nix-nar\n"+string(w.nar) || seen() != 2 {
		t.Errorf("%d requests reached net/http; %.50q", seen(), got[2])
	}
}

// plainQuestions are one for a narinfo in memory, one for a known miss, one for a small NAR of the store.
func plainQuestions(t testing.TB) (c *quickConn, list []plainOne) {
	w := newWorld(t, 100)
	w.store.add(w.info, w.nar)
	w.upstream("x", behaviour{absent: true, corrupt: -1})
	s := w.start()
	absent := strings.Repeat("0", 32) + ".narinfo"
	if a, b := get(s, w.path.Hash().String()+".narinfo"), get(s, absent); a.Code != 200 || b.Code != 404 {
		t.Fatal(a.Code, b.Code)
	}
	list = []plainOne{
		{"narinfo", w.path.Hash().String() + ".narinfo", 1},
		{"absent", absent, 2},
		{"NAR", w.narURL(), 2}, // one is the content, which this store makes anew
	}
	return &quickConn{s: s}, list
}

type plainOne struct {
	name, path string
	allocates  float64 // at most
}

func (q plainOne) text() []byte {
	return []byte("GET /" + q.path + " HTTP/1.1\r\nHost: 127.0.0.1:6490\r\nUser-Agent: curl/8 Nix/2.31\r\n\r\n")
}

func TestQuickAnswersAllocateNextToNothing(t *testing.T) {
	c, list := plainQuestions(t)
	for _, q := range list {
		question := q.text()
		n := testing.AllocsPerRun(1000, func() {
			if done, err := c.answer(question); !done || err != nil {
				t.Fatal("not answered")
			}
		})
		if n > q.allocates {
			t.Errorf("%s: %v allocations an answer, want %v", q.name, n, q.allocates)
		}
	}
}

func BenchmarkQuickAnswer(b *testing.B) {
	c, list := plainQuestions(b)
	for _, q := range list {
		question := q.text()
		b.Run(q.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if done, err := c.answer(question); !done || err != nil {
					b.Fatal("not answered")
				}
			}
		})
	}
}

func TestAClientThatLeavesIsNoticedWhileItsAnswerIsSought(t *testing.T) {
	w := newWorld(t, 100)
	s := w.start()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, left := make(chan struct{}), make(chan struct{})
	srv := &http.Server{ConnState: ConnState, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
		close(left)
	})}
	go srv.Serve(s.Listener(ln))
	defer srv.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-asked
	c.Close()
	<-left
}
