package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// nginx serves dir on a unix socket, which no other process can hold, and returns the socket's path.
func nginx(t *testing.T, dir string) string {
	t.Helper()
	tmp := t.TempDir()
	conf, socket := filepath.Join(tmp, "nginx.conf"), filepath.Join(tmp, "s")
	text := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr crit;
events {}
http {
  access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;
  uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/c;
  server { listen unix:%[2]s; root %[3]s; }
}
`, tmp, socket, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", tmp, "-c", conf)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("nginx is needed for this test: %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 1000 { // it does not tell when it is ready
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nginx did not start")
	return ""
}

// cutter relays connections to addr and cuts each of the first few after some bytes of answers.
func cutter(t *testing.T, addr string, cuts int, after int64) (url string, passed *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	passed = new(atomic.Int64)
	var wg sync.WaitGroup
	relay := func(in net.Conn, limit int64) {
		defer in.Close()
		out, err := net.Dial("unix", addr)
		if err != nil {
			t.Error(err)
			return
		}
		wg.Go(func() { io.Copy(out, in); out.Close() })
		io.CopyN(in, io.TeeReader(out, counter{passed}), limit)
		out.Close()
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			in, err := l.Accept()
			if err != nil {
				return
			}
			limit := int64(1) << 60
			if i < cuts {
				limit = after
			}
			wg.Go(func() { relay(in, limit) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String(), passed
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// With a real server's ranges and ETags, connections that break cost their headers and no more.
func TestNARsFromNginxOverABreakingLink(t *testing.T) {
	up := newCache(t)
	nar := random(1 << 20)
	dir := t.TempDir()
	hashes := map[string]string{}
	for _, compression := range allCompressions {
		sub := filepath.Join(dir, compression, "nar")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		h := up.add(nar, compression)
		for _, name := range []string{"/" + h.String() + ".narinfo", "/nar/" + h.String() + ".nar"} {
			if err := os.WriteFile(filepath.Join(dir, compression, name), up.files[name], 0o644); err != nil {
				t.Fatal(err)
			}
		}
		hashes[compression] = h.String()
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // nginx may drop root
	}
	addr := nginx(t, dir)
	for compression, hash := range hashes {
		t.Run(compression, func(t *testing.T) {
			url, passed := cutter(t, addr, 3, 200_000)
			c := up.client(func(cfg *Config) { cfg.URL = url + "/" + compression })
			t.Cleanup(c.Close)
			h, err := verify.ParseStoreHash(hash)
			if err != nil {
				t.Fatal(err)
			}
			v := mustNarInfo(t, c, h)
			r, err := c.NAR(context.Background(), v, 0)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			r.Close()
			c.Close()
			if err != nil || !bytes.Equal(b, nar) {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			st, err := os.Stat(filepath.Join(dir, compression, "nar", hash+".nar"))
			if err != nil {
				t.Fatal(err)
			}
			size := st.Size()
			// Headers of five answers, the narinfo, and what a cut connection still had in flight.
			const extra = 3*64<<10 + 16<<10
			if n := passed.Load(); r.WireBytes() != size || n < size || n > size+extra {
				t.Errorf("file of %d bytes: %d received, %d crossed the link", size, r.WireBytes(), n)
			}
			if n := c.Status().Requests; n < 4 {
				t.Errorf("%d requests: nothing was cut", n)
			}
		})
	}
}
