package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

// nixStore is a chroot store that real Nix makes.
type nixStore struct {
	t   *testing.T
	dir string
}

func newNixStore(t *testing.T) *nixStore {
	t.Helper()
	if _, err := exec.LookPath("nix-store"); err != nil {
		if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
			t.Fatal("nix-store is not installed: apt-get install nix-bin")
		}
		t.Skip("nix-store is not installed: apt-get install nix-bin")
	}
	s := &nixStore{t, t.TempDir()}
	s.write("nix.conf", "substituters =\nsandbox = false\nbuild-users-group =\nexperimental-features = nix-command\n")
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", s.dir).Run() })
	return s
}

func (s *nixStore) write(name, text string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func (s *nixStore) nix(name string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(name, append(args, "--store", filepath.Join(s.dir, "root"))...)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+s.dir, "HOME="+s.dir, "NIX_REMOTE=")
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s %s: %v: %s", name, args, err, &problem)
	}
	return strings.TrimSpace(string(out))
}

// key makes a signing key and returns its file and its public half.
func (s *nixStore) key(name string) (file, public string) {
	s.t.Helper()
	file = filepath.Join(s.dir, name+".sec")
	s.nix("nix-store", "--generate-binary-cache-key", name+"-1", file, file+".pub")
	b, err := os.ReadFile(file + ".pub")
	if err != nil {
		s.t.Fatal(err)
	}
	return file, strings.TrimSpace(string(b))
}

// canary is one path of the store.
type canary struct {
	path    verify.StorePath
	narHash verify.Hash
	nar     []byte
}

// add adds a path with unmistakable content, signed with keys.
func (s *nixStore) add(name string, keys ...string) canary {
	s.t.Helper()
	text := strings.Repeat("the content of "+name+", unlike any other. ", 2000) // more than 64 KiB, so that the log tells of it
	path, err := verify.ParseStorePath(s.nix("nix-store", "--add", s.write(name, text)))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, k := range keys {
		s.nix("nix", "store", "sign", "-k", k, path.String())
	}
	dump, err := exec.Command("nix-store", "--dump", filepath.Join(s.dir, "root", path.String())).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return canary{path, sha256.Sum256(dump), []byte(text)}
}

// receive adds a path that comes with its signatures, as substituted ones do.
func (s *nixStore) receive(name string, keys ...string) canary {
	s.t.Helper()
	other := newNixStore(s.t)
	c := other.add(name, keys...)
	cmd := exec.Command("nix", "copy", "--no-check-sigs", "--from", filepath.Join(other.dir, "root"), "--to", filepath.Join(s.dir, "root"), c.path.String())
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+s.dir, "HOME="+s.dir, "NIX_REMOTE=")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("nix copy: %v: %s", err, out)
	}
	return c
}

// lockedBuffer is a log that is written and read at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestARecordingPeerLearnsNothingPrivate lets a whole agent with a real store talk to a peer that keeps
// every decrypted byte, and searches that, the agent's log and its metrics for paths that must stay home.
func TestARecordingPeerLearnsNothingPrivate(t *testing.T) {
	s := newNixStore(t)
	publicKey, publicPub := s.key("public")
	privateKey, privatePub := s.key("private")
	removedKey, _ := s.key("removed")
	shared := s.add("shared-openly", publicKey)
	mixed := s.add("signed-twice", privateKey, publicKey)
	secrets := map[string]canary{
		"unsigned":                   s.add("canary-unsigned"),
		"signed by a private key":    s.add("canary-private", privateKey),
		"signed by a key since gone": s.add("canary-removed", removedKey),
	}

	state := t.TempDir()
	conf := filepath.Join(state, "flurry.toml")
	text := `
[store]
database = "` + filepath.Join(s.dir, "root/nix/var/nix/db/db.sqlite") + `"
real_dir = "` + filepath.Join(s.dir, "root/nix/store") + `"
[[upstream]]
url = "http://127.0.0.1:1"
keys = ["` + publicPub + `"]
public = true
[[upstream]]
url = "http://127.0.0.1:2"
keys = ["` + privatePub + `"]
[peers]
listen = ["127.0.0.1:0"]
mdns = false
`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(conf, nil, []string{"STATE_DIRECTORY=" + state, "RUNTIME_DIRECTORY=" + state})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var log lockedBuffer
	a, err := newAgent(cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.socket = filepath.Join(state, "flurry.sock")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx, []net.Listener{ln}) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	r, err := p2ptest.Start(p2ptest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	id, err := r.Connect(waiting, a.host.Addrs()...)
	if err != nil {
		t.Fatal(err)
	}
	both := func() bool {
		return r.EverClaimed(shared.path.Hash().Digest()) && r.EverClaimed(mixed.path.Hash().Digest())
	}
	if err := r.Wait(waiting, both); err != nil {
		t.Fatal("the public paths are not told of: ", err)
	}
	later := s.add("canary-later") // what comes later goes as a delta
	marker := s.receive("shared-later", publicKey)
	secrets["unsigned, later"] = later
	if err := r.Wait(waiting, func() bool { return r.EverClaimed(marker.path.Hash().Digest()) }); err != nil {
		t.Fatal("a later public path is not told of: ", err)
	}
	// Nix on this machine may ask for its own private paths; nobody else may hear of it.
	for _, c := range secrets {
		fetch(t, ln, "/"+c.path.Hash().String()+".narinfo")
		fetch(t, ln, "/"+binarycache.NARURL(c.path.Hash(), c.narHash))
	}
	fetch(t, ln, "/"+binarycache.NARURL(shared.path.Hash(), shared.narHash))
	line := "NAR served from the store"
	told := func() bool {
		return strings.Contains(log.String(), line) && strings.Contains(log.String(), shared.path.Base())
	}
	for deadline := time.Now().Add(5 * time.Second); !told() && time.Now().Before(deadline); { // it comes after the last byte
		time.Sleep(10 * time.Millisecond)
	}
	if !told() {
		t.Errorf("control: the log has no line %q with a public path:\n%s", line, log.String())
	}

	targets := func(c canary) []string {
		return []string{
			"/" + c.path.Hash().Digest().String() + ".narinfo", "/" + c.path.Hash().String() + ".narinfo",
			"/" + binarycache.NARURL(c.path.Hash(), c.narHash), "/nar/" + c.path.Base(), "/nar/../" + c.path.Base(),
			"/" + c.path.Hash().String() + ".ls", "/log/" + c.path.Base(), c.path.String(),
		}
	}
	for what, c := range secrets {
		for _, target := range targets(c) {
			resp, err := r.Get(waiting, id, target)
			if err == nil && resp.Status != http.StatusNotFound {
				t.Errorf("%s: status %d for one of its targets", what, resp.Status)
			}
		}
		if found := r.Search(p2ptest.Canary{Hash: c.path.Hash(), Name: c.path.Name(), NAR: c.nar}); len(found) > 0 {
			t.Errorf("the path that is %s is named: %v", what, found)
		}
		for place, text := range map[string]string{"log": log.String(), "metrics": fetch(t, ln, "/metrics"), "status.json": fetch(t, ln, "/status.json"), "page": fetch(t, ln, "/")} {
			if strings.Contains(text, c.path.Hash().String()) || strings.Contains(text, c.path.Name()) {
				t.Errorf("the path that is %s is named in the %s:\n%s", what, place, text)
			}
		}
	}
	// The positive control: the same requests and the same search find a public path, without its private
	// signature.
	for _, target := range targets(mixed)[:3:3] {
		if target == "/"+mixed.path.Hash().String()+".narinfo" {
			continue // peers are asked by digest only
		}
		if resp, err := r.Get(waiting, id, target); err != nil || resp.Status != http.StatusOK {
			t.Errorf("control: %s: %v %v", target, resp.Status, err)
		}
	}
	found := strings.Join(r.Search(p2ptest.Canary{Hash: mixed.path.Hash(), Name: mixed.path.Name(), NAR: mixed.nar}), ", ")
	for _, way := range []string{"store hash", "NAR bytes", "have-set"} {
		if !strings.Contains(found, way) {
			t.Errorf("control: the search does not find a public path's %s: %s", way, found)
		}
	}
	// On a metered network nobody but Nix gets anything.
	a.setMetered(true)
	if resp, err := r.Get(waiting, id, targets(shared)[0]); err != nil || resp.Status != http.StatusNotFound || a.report().Sharing != "metered" {
		t.Errorf("on a metered network: %v %v, sharing %q", resp.Status, err, a.report().Sharing)
	}
	if resp, err := http.Get("http://" + ln.Addr().String() + "/" + shared.path.Hash().String() + ".narinfo"); err != nil || resp.StatusCode != http.StatusOK {
		t.Error("on a metered network Nix is not served:", err)
	} else {
		resp.Body.Close()
	}
	a.setPaused(true, nil)
	a.setPaused(false, nil)
	if resp, err := r.Get(waiting, id, targets(shared)[0]); err != nil || resp.Status != http.StatusNotFound {
		t.Error("the end of a pause shares on a metered network:", resp.Status, err)
	}
	a.setMetered(false)
	if resp, err := r.Get(waiting, id, targets(shared)[0]); err != nil || resp.Status != http.StatusOK {
		t.Error("not metered any more:", resp.Status, err)
	}
	received, sent := r.Messages()
	bytesIn := 0
	for _, m := range received {
		bytesIn += len(m)
	}
	t.Logf("the peer received %d messages, %d bytes in all, and sent %d; searched for %d private paths (%d requests for each), none named; the same search finds a public one by: %s",
		len(received), bytesIn, len(sent), len(secrets), len(targets(mixed)), found)
	if bytes.Contains(bytes.Join(received, nil), []byte("private-1:")) {
		t.Error("a private key's signature left the machine")
	}
}

func fetch(t *testing.T, ln net.Listener, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + ln.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
