//go:build linux

package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// standin is a private cache as Attic and Cachix are: it wants a token, signs with a key of its own,
// names NARs by opaque URLs with a query, and sends who wants one to a signed address at a storage host,
// which must not see the token. Large NARs it streams itself, in several zstd frames, without length or
// ranges, as Attic does with what it keeps in chunks.
type standin struct {
	t        testing.TB
	name     string // also its path
	token    string
	streamed int64 // bytes of NAR from which on it streams
	storage  string

	key   ed25519.PrivateKey
	nars  map[string][]byte // by opaque name, compressed
	large map[string]bool   // those that it streams
	infos map[string]string // narinfo texts by store hash

	mu      sync.Mutex // guards all below
	refused int        // requests without the token
	served  int        // NARs that it streamed itself
	sent    int        // to the storage
	stored  int        // that the storage gave
	leaked  []string   // what the storage should not have seen
}

func newStandin(t testing.TB, name, storage string) *standin {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &standin{t: t, name: name, token: "s3cret-token-of-" + name, storage: storage, streamed: 1 << 20, key: key,
		nars: map[string][]byte{}, large: map[string]bool{}, infos: map[string]string{}}
}

// publicKey is in Nix's notation.
func (s *standin) publicKey() string {
	return s.name + "-1:" + base64.StdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey))
}

// add takes paths over from the corpus, signed anew.
func (s *standin) add(c *corpus, paths ...*corpusPath) {
	s.t.Helper()
	for _, p := range paths {
		hash := storeHash(p.path)
		text, err := os.ReadFile(filepath.Join(c.dir, "cache", hash+".narinfo"))
		if err != nil {
			s.t.Fatal(err)
		}
		n, err := verify.ParseNarInfo(string(text))
		if err != nil {
			s.t.Fatal(err)
		}
		nar := s.pipe(nil, map[string]string{".xz": "xz", ".zst": "zstd"}[filepath.Ext(p.url)], "-dc", filepath.Join(c.dir, "cache", p.url))
		opaque := fmt.Sprintf("%x", ed25519.Sign(s.key, []byte(hash))[:12])
		if s.large[opaque] = p.narSize >= s.streamed; s.large[opaque] {
			half := len(nar) / 2
			s.nars[opaque] = append(s.pipe(nar[:half], "zstd", "-qc"), s.pipe(nar[half:], "zstd", "-qc")...)
		} else {
			s.nars[opaque] = s.pipe(nar, "zstd", "-qc")
		}
		n.URL, n.Compression, n.FileSize = "nar/"+opaque+"?cache="+s.name+"&v=2", "zstd", 0
		n.Sigs = []string{s.name + "-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, []byte(n.Fingerprint())))}
		s.infos[hash] = n.String()
	}
}

func (s *standin) pipe(in []byte, program string, args ...string) []byte {
	s.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s: %v", program, err)
	}
	return out
}

// listen serves a handler in a namespace until the returned function is called.
func (l *lab) listen(where, addr string, h http.Handler) (stop func()) {
	l.t.Helper()
	var ln net.Listener
	err := l.inside(where, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: patience}
	go srv.Serve(ln)
	l.t.Cleanup(func() { srv.Close() })
	return func() { srv.Close() }
}

// ServeHTTP is the cache.
func (s *standin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, password, _ := r.BasicAuth()
	if password != s.token && r.Header.Get("Authorization") != "Bearer "+s.token {
		s.refused++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/"+s.name+"/")
	opaque := strings.TrimPrefix(name, "nar/")
	file, isNAR := s.nars[opaque]
	switch {
	case name == "nix-cache-info":
		fmt.Fprint(w, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 41\n")
	case s.infos[strings.TrimSuffix(name, ".narinfo")] != "":
		fmt.Fprint(w, s.infos[strings.TrimSuffix(name, ".narinfo")])
	case !isNAR || r.URL.RawQuery != "cache="+s.name+"&v=2":
		w.WriteHeader(http.StatusNotFound)
	case s.large[opaque]:
		s.served++
		w.Header().Set("Accept-Ranges", "none")
		http.NewResponseController(w).Flush()
		w.Write(file)
	default:
		s.sent++
		http.Redirect(w, r, "http://"+s.storage+"/bucket/"+s.name+"/"+opaque+"?X-Amz-Expires=300&X-Amz-Signature="+s.signature(opaque), http.StatusTemporaryRedirect)
	}
}

func (s *standin) signature(opaque string) string {
	return fmt.Sprintf("%x", ed25519.Sign(s.key, []byte("storage "+opaque))[:16])
}

// bucket is the storage host of several caches; like S3 it refuses two ways of authentication at once.
func bucket(caches ...*standin) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, s := range caches {
			opaque, ok := strings.CutPrefix(r.URL.Path, "/bucket/"+s.name+"/")
			if !ok {
				continue
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, h := range []string{"Authorization", "Cookie", "Referer", "X-Team"} {
				if v := r.Header.Get(h); v != "" {
					s.leaked = append(s.leaked, h+": "+v)
				}
			}
			switch {
			case len(s.leaked) > 0:
				w.WriteHeader(http.StatusBadRequest)
			case r.URL.Query().Get("X-Amz-Signature") != s.signature(opaque):
				w.WriteHeader(http.StatusForbidden)
			default:
				s.stored++
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.nars[opaque]))
			}
			return
		}
		w.WriteHeader(http.StatusNotFound)
	})
}
