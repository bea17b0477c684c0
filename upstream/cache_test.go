package upstream

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/flurry-nix/flurry/verify"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient are timeouts that a loaded machine does not run into, with pauses that nobody notices.
var patient = Timeouts{
	Connect: 20 * time.Second, NarInfo: 20 * time.Second, NarInfoFloor: 20 * time.Second, Small: 30 * time.Second,
	Header: 20 * time.Second, Idle: 20 * time.Second, StartWait: 20 * time.Second, Retry: time.Millisecond, RetryMax: 5 * time.Millisecond,
	BreakerMin: time.Millisecond, BreakerMax: 2 * time.Millisecond, RetryAfterMax: 5 * time.Millisecond,
}

// impatientWith shortens the one timeout that a fault makes the client wait for.
func impatientWith(fault string) func(*Config) {
	return func(cfg *Config) {
		switch t := &cfg.Timeouts; {
		case fault == "hang":
			t.Header = 50 * time.Millisecond
		case strings.HasPrefix(fault, "stall"):
			t.Idle = 500 * time.Millisecond
		}
	}
}

// cache is a signed binary cache over HTTP that misbehaves on request.
type cache struct {
	*httptest.Server
	t     testing.TB
	key   ed25519.PrivateKey
	files map[string][]byte

	mu     sync.Mutex
	faults map[string][]string // per path: one per request, the last one for ever
	seen   []string            // "PATH RANGE" of every request
	sent   map[string]int      // body bytes per path
	from   map[string]bool     // addresses of connections that asked
	gone   chan struct{}       // ends the hanging handlers
}

func newCache(t testing.TB) *cache {
	c := &cache{t: t, files: map[string][]byte{}, faults: map[string][]string{}, sent: map[string]int{}, from: map[string]bool{}, gone: make(chan struct{})}
	_, c.key, _ = ed25519.GenerateKey(nil)
	c.files["/nix-cache-info"] = []byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
	c.Server = httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(func() { close(c.gone); c.Server.Close() })
	return c
}

func (c *cache) keys() *verify.Keys {
	pub := "test-1:" + base64.StdEncoding.EncodeToString(c.key.Public().(ed25519.PublicKey))
	k, err := verify.NewKeys([]string{pub}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return k
}

// client is of this cache, with patient timeouts unless changed.
func (c *cache) client(change ...func(*Config)) *Client {
	c.t.Helper()
	cfg := Config{URL: c.URL, Timeouts: patient}
	for _, f := range change {
		f(&cfg)
	}
	u, err := New(cfg, c.keys())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(u.Close)
	return u
}

// add publishes a NAR and returns its store hash.
func (c *cache) add(nar []byte, compression string, change ...func(*verify.NarInfo)) verify.StoreHash {
	c.t.Helper()
	sum := sha256.Sum256(nar)
	h := verify.StoreHash(sum[:20])
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-x")
	if err != nil {
		c.t.Fatal(err)
	}
	file := compress(c.t, compression, nar)
	n := &verify.NarInfo{StorePath: path, URL: "nar/" + h.String() + ".nar", Compression: compression,
		FileSize: int64(len(file)), NarHash: sum, NarSize: int64(len(nar))}
	for _, f := range change {
		f(n)
	}
	n.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(c.key, []byte(n.Fingerprint())))}
	c.files["/nar/"+h.String()+".nar"] = file
	c.files["/"+h.String()+".narinfo"] = []byte(n.String())
	return h
}

// fault sets what happens to the next requests for a path; the last one stays.
func (c *cache) fault(path string, faults ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[path] = faults
}

func (c *cache) requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.seen...)
}

// connections is how many asked something.
func (c *cache) connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.from)
}

func (c *cache) take(r *http.Request) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, strings.TrimSpace(r.URL.RequestURI()+" "+r.Header.Get("Range")))
	c.from[r.RemoteAddr] = true
	list := c.faults[r.URL.Path]
	if len(list) == 0 {
		return "ok"
	}
	if len(list) > 1 {
		c.faults[r.URL.Path] = list[1:]
	}
	return list[0]
}

// serve answers as lab/faulty-cache does.
func (c *cache) serve(w http.ResponseWriter, r *http.Request) {
	fault, arg, _ := strings.Cut(c.take(r), ":")
	c.mu.Lock()
	body, ok := c.files[r.URL.Path]
	c.mu.Unlock()
	if fault == "late" {
		d, _ := time.ParseDuration(arg)
		time.Sleep(d)
		fault, arg = "ok", ""
	}
	half, whole := len(body)/2, body
	code, err := strconv.Atoi(fault)
	switch {
	case err == nil:
		if arg != "" {
			w.Header().Set("Retry-After", arg)
		}
		w.WriteHeader(code)
		return
	case fault == "redirect":
		http.Redirect(w, r, arg, http.StatusFound)
		return
	case fault == "hang":
		c.hang(r)
		return
	case fault == "close":
		panic(http.ErrAbortHandler)
	case !ok:
		http.NotFound(w, r)
		return
	case fault == "corrupt":
		body = bytes.Clone(body)
		body[half] ^= 0x55
	case fault == "garbage":
		body = random(len(body) + 1)[1:]
	case fault == "short":
		body = body[:half]
	case fault == "empty":
		body = nil
	}
	first := 0
	w.Header().Set("Etag", fmt.Sprintf("%q", strconv.Itoa(len(whole))))
	if arg != "noranges" {
		w.Header().Set("Accept-Ranges", "bytes")
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); n == 1 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(body)-1, len(body)))
			code = http.StatusPartialContent
		}
	}
	c.send(w, r, fault, code, body[first:], max(0, half-first))
}

// send writes a body, or that part of it which the fault leaves.
func (c *cache) send(w http.ResponseWriter, r *http.Request, fault string, code int, body []byte, half int) {
	if fault == "eof" { // no length, closed half way: only a raw connection can do that
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			c.t.Error(err)
			return
		}
		fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nConnection: close\r\n\r\n%s", body[:half])
		buf.Flush()
		conn.Close()
		return
	}
	if fault != "chunk-abort" && fault != "chunked" {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if code != 0 {
		w.WriteHeader(code)
	}
	cut := fault == "truncate" || fault == "chunk-abort" || fault == "stall"
	if cut {
		body = body[:half]
	}
	c.mu.Lock()
	c.sent[r.URL.Path] += len(body) // before they go: the client may ask as soon as it has them
	c.mu.Unlock()
	w.Write(body)
	if !cut {
		return
	}
	http.NewResponseController(w).Flush()
	if fault == "stall" {
		c.hang(r)
		return
	}
	panic(http.ErrAbortHandler)
}

func (c *cache) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-c.gone:
	}
}

func compress(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	switch how {
	case "xz", "bzip2":
		cmd := exec.Command(how, "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(b), &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
	case "zstd":
		w, _ := zstd.NewWriter(&out)
		w.Write(b)
		w.Close()
	case "gzip":
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
	case "br":
		w := brotli.NewWriterLevel(&out, 1)
		w.Write(b)
		w.Close()
	default:
		return b
	}
	return out.Bytes()
}

// random gives bytes that do not compress, the same ones every time.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}
