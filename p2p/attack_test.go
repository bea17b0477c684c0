package p2p

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

// softMemory is the bytes above which the garbage collector works harder. What lives under attack is
// about 110 MB; without this bound its garbage would double that and more.
const softMemory = 160 << 20

// runTarget is an agent in a process of its own. It prints its address and lives until its input ends.
func runTarget() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	debug.SetMemoryLimit(softMemory) // as an agent does
	id, err := LoadIdentity(os.Getenv(hostileChild))
	if err == nil {
		c := newFakeCatalog()
		for i := range uint64(5000) {
			c.add(nil2{}, i, 1, verify.ScopePublic)
		}
		var h *Host
		// As many connections per address as in all: all attackers are on loopback.
		if h, err = New(Config{Listen: []string{"127.0.0.1:0"}, StoreDir: "/nix/store", ConnectionsPerIP: 1 << 20}, id, endless{c}); err == nil {
			for _, a := range h.Addrs() {
				if strings.Contains(a, "/tcp/") {
					fmt.Println(a)
				}
			}
			go func() { io.Copy(io.Discard, os.Stdin); stop() }()
			err = h.Run(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// endless has a large NAR for whoever asks for any.
type endless struct{ *fakeCatalog }

func (endless) NAR(context.Context, verify.StoreHash, verify.Hash, verify.Scope) (Content, error) {
	return zeros(64 << 20), nil
}

type zeros int64

func (z zeros) Size() int64  { return int64(z) }
func (z zeros) Close() error { return nil }
func (z zeros) WriteRange(_ context.Context, w io.Writer, _, n int64) (sent int64, err error) {
	buf := make([]byte, 64<<10)
	for sent < n && err == nil {
		var k int
		k, err = w.Write(buf[:min(int64(len(buf)), n-sent)])
		sent += int64(k)
	}
	return sent, err
}

// nil2 stands for a test where there is none.
type nil2 struct{ testing.TB }

func (nil2) Helper()           {}
func (nil2) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// BenchmarkHostileConnections attacks an agent with a thousand identities, each of which does the worst
// it can on every protocol, and reports what that costs: the agent's resident memory and whether an
// honest peer is still served.
func BenchmarkHostileConnections(b *testing.B) {
	for range b.N {
		attack(b, 1000)
	}
}

func attack(b *testing.B, n int) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hostileChild+"="+b.TempDir()+"/identity")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	target, err := peer.AddrInfoFromString(strings.TrimSpace(address))
	if err != nil {
		b.Fatal(err)
	}
	quiet := residentMB(b, cmd.Process.Pid, "VmRSS")
	// The honest one is there first, and dials out is not needed: it is served throughout.
	good := startHostWith(b, Config{}, newTestIdentity(b), newFakeCatalog())
	good.dialer.found(discoveryOf(at{Via: "static", Name: "target", Keep: true, Addrs: []string{target.Addrs[0].String()}}))
	eventually(b, "the honest peer is connected", func() bool { return good.isConnected(target.ID) })

	x, sum := newFakeCatalog().add(b, 99_999, 1, verify.ScopePublic)
	attack := p2ptest.Attack{Target: strings.TrimSpace(address), NAR: binarycache.NARURL(x, sum), Attackers: n}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	connected := make(chan int, 1)
	go func() { connected <- attack.Run(ctx) }()
	served, failed := 0, 0
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		p := good.peers.lookup(target.ID)
		ask, stop := context.WithTimeout(ctx, 5*time.Second)
		resp, err := p.get(ask, &verify.PathDigest{}, "nix-cache-info", nil)
		stop()
		if err != nil {
			failed++
			continue
		}
		resp.Body.Close()
		served++
	}
	b.ReportMetric(quiet, "MB-before")
	b.ReportMetric(residentMB(b, cmd.Process.Pid, "VmRSS"), "MB-under-attack")
	peak := residentMB(b, cmd.Process.Pid, "VmHWM")
	b.ReportMetric(peak, "MB-peak")
	cancel()
	in := <-connected
	b.ReportMetric(float64(in), "got-in")
	b.ReportMetric(float64(served), "honest-served")
	b.ReportMetric(float64(failed), "honest-failed")
	b.Logf("%.0f MB before, %.0f MB peak, %d got in", quiet, peak, in)
	if peak > 256 || failed > served/10 {
		b.Errorf("%.0f MB, honest peer served %d times, failed %d times", peak, served, failed)
	}
}

func residentMB(b *testing.B, pid int, field string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			var kb float64
			fmt.Sscan(rest, &kb)
			return kb / 1024
		}
	}
	b.Fatal("no " + field)
	return 0
}
