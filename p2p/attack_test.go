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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

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
	nar := "GET /" + binarycache.NARURL(x, sum) + " HTTP/1.1\r\nHost: x\r\n\r\n"
	keys := make([]uint64, 200_000)
	for k := range keys {
		keys[k] = uint64(k) * 0x9e3779b97f4a7c15
	}
	snap, err := p2ptest.Snapshot(keys)
	if err != nil {
		b.Fatal(err)
	}
	frames := append(p2ptest.Frame(1, []byte(`{"version":1,"store_dir":"/nix/store"}`)), p2ptest.Frame(2, snap)...)
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var connected atomic.Int32
	for i := range n {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 10 * time.Millisecond) // 100 a second, as fast as they are let in
			connected.Add(misbehave(ctx, *target, nar, frames))
		})
	}
	served, failed := 0, 0
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		p := good.peers.lookup(target.ID)
		ask, stop := context.WithTimeout(ctx, 5*time.Second)
		resp, err := p.get(ask, &verify.PathDigest{}, "nix-cache-info", "")
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
	wg.Wait()
	b.ReportMetric(float64(connected.Load()), "got-in")
	b.ReportMetric(float64(served), "honest-served")
	b.ReportMetric(float64(failed), "honest-failed")
	b.Logf("%.0f MB before, %.0f MB peak, %d got in", quiet, peak, connected.Load())
	if peak > 256 || failed > served/10 {
		b.Errorf("%.0f MB, honest peer served %d times, failed %d times", peak, served, failed)
	}
}

// misbehave returns 1 if the attacker was let in.
func misbehave(ctx context.Context, target peer.AddrInfo, nar string, frames []byte) int32 {
	h, err := libp2p.New(libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.NoListenAddrs)
	if err != nil {
		return 0
	}
	defer h.Close()
	dial, cancel := context.WithTimeout(ctx, 10*time.Second)
	err = h.Connect(dial, peer.AddrInfo{ID: target.ID, Addrs: []ma.Multiaddr{target.Addrs[0]}})
	cancel()
	if err != nil {
		return 0
	}
	var wg sync.WaitGroup
	send := func(proto string, data []byte) {
		wg.Go(func() { raw(ctx, h, target.ID, proto, data) })
	}
	send(string(protoHave), frames)
	send(string(protoHave), frames[:len(frames)/2]) // and stall
	send(string(protoGroup), []byte("half"))
	for range 20 {
		send(string(protoHTTP), append([]byte(nar), make([]byte, 256<<10-len(nar)-100)...)) // and never read the answer
		send(string(protoHTTP), []byte("GET /nix-cache-info HTTP/1.1\r\nX: "))              // and never end
	}
	wg.Wait()
	return 1
}

// raw sends data on a new stream and holds it open, reading nothing.
func raw(ctx context.Context, h host.Host, id peer.ID, proto string, data []byte) {
	open, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := h.NewStream(network.WithNoDial(open, "attack"), id, protocol.ID(proto))
	if err != nil {
		return
	}
	defer s.Reset()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	s.Write(data)
	<-ctx.Done()
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
