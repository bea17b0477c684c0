package mdns

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flurry-nix/flurry/discovery"
)

// This file makes machines: network namespaces joined by bridges, in each of which the test binary
// runs again as an agent that prints what it finds.

const agentEnv = "FLURRY_MDNS_TEST_AGENT"

// agentConfig is what an agent is told.
type agentConfig struct {
	PeerID     string
	Port       int
	Interfaces []string
	Networks   []netip.Prefix
	AlsoJoin   []string // interfaces on which the agent plays another program that listens to mDNS
	Flood      int      // instead of finding, announce so many invented instances by eth0
}

// report is a line an agent prints.
type report struct {
	Found *discovery.Found `json:",omitempty"`
	Heap  uint64           `json:",omitempty"` // bytes; the highest so far
}

func TestMain(m *testing.M) {
	if cfg := os.Getenv(agentEnv); cfg != "" {
		if err := runAgent(cfg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// runAgent finds peers until stdin ends.
func runAgent(text string) error {
	var cfg agentConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	if cfg.Flood > 0 {
		return flood(cfg.Flood)
	}
	for _, name := range cfg.AlsoJoin {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		s, err := openSocket(ipv4Family, []net.Interface{*ifi})
		if err != nil {
			return err
		}
		defer s.Close()
	}
	f, err := New(Config{PeerID: cfg.PeerID, Port: cfg.Port, Interfaces: cfg.Interfaces, Networks: cfg.Networks,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	out := json.NewEncoder(os.Stdout)
	var peak atomic.Uint64
	go watchHeap(ctx, &peak)
	return f.Run(ctx, func(p discovery.Found) {
		_ = out.Encode(report{Found: &p, Heap: peak.Load()}) // the test has gone: stdin says so too
	})
}

func flood(n int) error {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	sock, err := openSocket(ipv4Family, []net.Interface{*ifi})
	if err != nil {
		return err
	}
	defer sock.Close()
	at := link{addrs: []netip.Addr{netip.MustParseAddr("10.9.0.66")}}
	for i := range n {
		name := instanceName(strconv.Itoa(i))
		packet, err := service{instance: name, host: name + ".local.", peerID: testID("F"), port: DefaultPort}.response(at, ttl)
		if err != nil {
			return err
		}
		if err := sock.write(packet, ifi.Index); err != nil {
			return err
		}
	}
	return nil
}

func watchHeap(ctx context.Context, peak *atomic.Uint64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak.Store(max(peak.Load(), m.HeapInuse))
		<-tick.C
	}
}

// lab is a set of machines and the switches between them.
type lab struct {
	t      *testing.T
	prefix string
	mu     sync.Mutex
	ends   int
}

var labs atomic.Int32

// newLab needs root. Without it the test is skipped, or fails where everything must run.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
			t.Fatal("must run as root, to make network namespaces")
		}
		t.Skip("not root: network namespaces cannot be made, so real multicast is not tested")
	}
	t.Parallel()
	return &lab{t: t, prefix: fmt.Sprintf("flm%d-%d", os.Getpid(), labs.Add(1))}
}

// ip runs the ip command in the namespace called name.
func (l *lab) ip(name string, args ...string) string {
	l.t.Helper()
	args = append([]string{"-n", l.prefix + name}, args...)
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("ip %s: %v: %s (package iproute2)", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine makes a namespace with loopback up and nothing else: no route anywhere.
func (l *lab) machine(name string) *machine {
	l.t.Helper()
	ns := l.prefix + name
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		l.t.Fatalf("ip netns add %s: %v: %s (package iproute2)", ns, err, out)
	}
	l.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", ns).CombinedOutput(); err != nil {
			l.t.Errorf("ip netns delete %s: %v: %s", ns, err, out)
		}
	})
	l.ip(name, "link", "set", "lo", "up")
	return &machine{lab: l, name: name}
}

// wire is a switch: a namespace with a bridge.
type wire struct{ *machine }

func (l *lab) wire(name string) wire {
	l.t.Helper()
	w := wire{l.machine(name)}
	l.ip(name, "link", "add", "sw", "type", "bridge", "mcast_snooping", "0")
	l.ip(name, "link", "set", "sw", "up")
	return w
}

type machine struct {
	*lab
	name string
}

// plug gives the machine an interface on the wire with the addresses, if any.
func (m *machine) plug(ifname string, w wire, addrs ...string) *machine {
	m.t.Helper()
	m.mu.Lock()
	m.ends++
	end := "p" + strconv.Itoa(m.ends)
	m.mu.Unlock()
	m.ip(w.name, "link", "add", end, "type", "veth", "peer", "name", ifname, "netns", m.prefix+m.name)
	m.ip(w.name, "link", "set", end, "master", "sw", "up")
	for _, a := range addrs {
		m.ip(m.name, "address", "add", a, "dev", ifname)
	}
	m.ip(m.name, "link", "set", ifname, "up")
	return m
}

// agent is a running finder, and what it has found.
type agent struct {
	t    *testing.T
	name string
	id   string

	mu    sync.Mutex
	found []discovery.Found
	heap  uint64
	news  chan struct{} // closed and replaced at each report
}

// agent starts one in the machine. Its peer id comes from its name.
func (m *machine) agent(name string, cfg agentConfig) *agent {
	m.t.Helper()
	a := &agent{t: m.t, name: name, id: testID(name), news: make(chan struct{})}
	cfg.PeerID = a.id
	text, err := json.Marshal(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", m.prefix+m.name, os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+string(text))
	var log strings.Builder
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		a.read(stdout)
	}()
	m.t.Cleanup(func() {
		_ = stdin.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			m.t.Errorf("agent %s: %v", name, err)
		}
		if m.t.Failed() {
			m.t.Logf("agent %s:\n%s", name, log.String())
		}
	})
	return a
}

func (a *agent) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var rep report
		if err := json.Unmarshal(lines.Bytes(), &rep); err != nil {
			a.t.Errorf("agent %s printed %q", a.name, lines.Text())
			continue
		}
		a.mu.Lock()
		a.heap = max(a.heap, rep.Heap)
		if rep.Found != nil {
			a.found = append(a.found, *rep.Found)
		}
		close(a.news)
		a.news = make(chan struct{})
		a.mu.Unlock()
	}
}

// finds waits until the last thing that a was told of b satisfies ok, and returns it.
func (a *agent) finds(b *agent, ok func(addrs []string) bool) discovery.Found {
	a.t.Helper()
	began := time.Now()
	deadline := time.After(40 * time.Second)
	for {
		a.mu.Lock()
		last, news := a.last(b.id), a.news
		a.mu.Unlock()
		if last.PeerID != "" && ok(last.Addrs) {
			a.t.Logf("%s found %s after %v at %s", a.name, b.name, time.Since(began).Round(time.Millisecond), last.Addrs)
			return last
		}
		select {
		case <-news:
		case <-deadline:
			a.t.Fatalf("%s never found %s as wanted; last %+v", a.name, b.name, last)
		}
	}
}

func (a *agent) last(id string) (f discovery.Found) {
	for _, g := range a.found {
		if g.PeerID == id {
			f = g
		}
	}
	return f
}

// neverFound fails if a was told of b so far.
func (a *agent) neverFound(b *agent) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.last(b.id); f.PeerID != "" {
		a.t.Errorf("%s was told of %s: %+v", a.name, b.name, f)
	}
}

func (a *agent) peakHeap() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heap
}

// testID makes a plausible peer id from a name.
func testID(name string) string {
	id := "12D3KooW" + strings.Repeat("x", 44-len(name)) + name
	if !discovery.PlausiblePeerID(id) {
		panic("name is not base58: " + name)
	}
	return id
}

// exactly wants these addresses, TCP then QUIC, on the port.
func exactly(port int, hosts ...string) func([]string) bool {
	var want []string
	for _, h := range hosts {
		want = append(want, fmt.Sprintf("%s/tcp/%d", h, port))
	}
	for _, h := range hosts {
		want = append(want, fmt.Sprintf("%s/udp/%d/quic-v1", h, port))
	}
	return func(addrs []string) bool { return strings.Join(addrs, " ") == strings.Join(want, " ") }
}

// including wants these among the addresses and nothing beginning with any of but.
func including(addr string, but ...string) func([]string) bool {
	return func(addrs []string) bool {
		has := false
		for _, a := range addrs {
			has = has || a == addr
			for _, b := range but {
				if strings.HasPrefix(a, b) {
					return false
				}
			}
		}
		return has
	}
}
