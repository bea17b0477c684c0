//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rateLimit     = 6_250_000 // bytes per second: 50 Mbit/s
	rateLink      = "100mbit" // of every machine
	rateWarmUp    = 3 * time.Second
	rateMeasure   = 8 * time.Second
	probeEvery    = 4 * time.Millisecond
	rateTolerance = 0.05
	rttTolerance  = 5 * time.Millisecond
)

// BenchmarkLimits measures on a shaped link what limits.upload and limits.download promise: that the rate
// holds, and that other traffic over the same links hardly waits for it. A UDP ping-pong runs beside a
// real substitution, without any limit for comparison. One run is the measurement.
func BenchmarkLimits(b *testing.B) {
	l := newLab(b, labConfig{machines: 6, linkRate: rateLink})
	all := l.w.corpus.roots["system"]
	seeder := l.machine[1]
	seeder.preload(all)
	answerProbes(b, seeder)
	https, ca := seeder.serveHTTP2(l.w.corpus.dir, "8443")

	p50, p99 := probeFor(b, l.machine[2], seeder.ip, rateMeasure)
	idle := p99
	fmt.Fprintf(os.Stderr, "%-44s %8s %12s %12s\n", "transfer", "Mbit/s", "probe p50", "probe p99")
	fmt.Fprintf(os.Stderr, "%-44s %8s %12v %12v\n", "none", "", p50, p99)

	limited := fmt.Sprintf("[limits]\n%%s = \"%dMbit/s\"\n", rateLimit*8/1_000_000)
	for _, c := range []struct {
		what           string
		machine        int
		serving, using string // configuration; serving "" means no neighbour
		held           bool
		central, env   []string // nil is the lab's and nothing
	}{
		{"from a neighbour, no limit", 2, "# none\n", "", false, nil, nil},
		{"from a neighbour, upload limited", 3, fmt.Sprintf(limited, "upload"), "", true, nil, nil},
		{"from a neighbour, download limited", 4, "# none\n", fmt.Sprintf(limited, "download"), true, nil, nil},
		{"from the central cache, download limited", 5, "", fmt.Sprintf(limited, "download"), true, nil, nil},
		{"… over HTTP/2, download limited", 6, "", fmt.Sprintf(limited, "download"), true, []string{https}, []string{"SSL_CERT_FILE=" + ca}},
	} {
		if c.serving != "" {
			seeder.startAgent(agentConfig{toml: c.serving})
		}
		m := l.machine[c.machine]
		m.startAgent(agentConfig{toml: c.using, upstreams: c.central, env: c.env})
		if c.serving != "" {
			m.agent.knows(seeder.agent, 100)
		}
		fill := m.start("nix-store", "-r", all)
		time.Sleep(rateWarmUp)
		began, before := time.Now(), m.received()
		p50, p99 := probeFor(b, m, seeder.ip, rateMeasure)
		rate := float64(m.received()-before) / time.Since(began).Seconds()
		if fill.over() {
			b.Errorf("%s: it was over before it was measured", c.what)
		}
		fill.cancel()
		fill.wait()
		m.agent.stop()
		if c.serving != "" {
			seeder.agent.stop()
		}
		fmt.Fprintf(os.Stderr, "%-44s %8.2f %12v %12v\n", c.what, rate*8/1e6, p50, p99)
		if !c.held {
			continue
		}
		if r := rate / rateLimit; r < 1-rateTolerance || r > 1+rateTolerance {
			b.Errorf("%s: %.1f %% of the limit", c.what, 100*r)
		}
		if p99 > idle+rttTolerance {
			b.Errorf("%s: other traffic's p99 went from %v to %v", c.what, idle, p99)
		}
	}
}

// BenchmarkLimitsAmongMany is BenchmarkLimits where several neighbours share one limit: four that download from
// one machine, and one that downloads from four.
func BenchmarkLimitsAmongMany(b *testing.B) {
	const many = 4
	l := newLab(b, labConfig{machines: 2*many + 1, linkRate: rateLink})
	all := l.w.corpus.roots["system"]
	seeders, readers, one := l.machine[1:many+1], l.machine[many+1:2*many+1], l.machine[2*many+1]
	seeders[0].preload(all)
	for _, m := range seeders[1:] {
		if out, err := exec.Command("cp", "-a", seeders[0].dir+"/nix", m.dir).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	answerProbes(b, seeders[0])
	_, idle := probeFor(b, one, seeders[0].ip, rateMeasure)
	fmt.Fprintf(os.Stderr, "%-44s %8s %12s %12v\n", "none", "", "", idle)
	measure := func(what string, serving, readers []*machine, toml string, bytes func() int64) {
		var fills []*running
		for _, m := range readers {
			m.startAgent(agentConfig{toml: toml})
			for _, s := range serving {
				m.agent.knows(s.agent, 100)
			}
		}
		for _, m := range readers {
			fills = append(fills, m.start("nix-store", "-r", all))
		}
		time.Sleep(rateWarmUp)
		began, before := time.Now(), bytes()
		p50, p99 := probeFor(b, readers[0], seeders[0].ip, rateMeasure)
		rate := float64(bytes()-before) / time.Since(began).Seconds()
		for i, f := range fills {
			if f.over() {
				b.Errorf("%s: it was over before it was measured", what)
			}
			f.cancel()
			f.wait()
			readers[i].agent.stop()
		}
		fmt.Fprintf(os.Stderr, "%-44s %8.2f %12v %12v\n", what, rate*8/1e6, p50, p99)
		if r := rate / rateLimit; r < 1-rateTolerance || r > 1+rateTolerance {
			b.Errorf("%s: %.1f %% of the limit", what, 100*r)
		}
		if p99 > idle+rttTolerance {
			b.Errorf("%s: other traffic's p99 went from %v to %v", what, idle, p99)
		}
	}
	limited := "[limits]\n%s = \"50Mbit/s\"\n"
	seeders[0].startAgent(agentConfig{toml: fmt.Sprintf(limited, "upload")})
	measure("to four neighbours, upload limited", seeders[:1], readers, "", func() int64 { _, sent := seeders[0].traffic(); return sent })
	seeders[0].agent.stop()
	for _, s := range seeders {
		s.startAgent(agentConfig{})
	}
	measure("from four neighbours, download limited", seeders, []*machine{one}, fmt.Sprintf(limited, "download"), one.received)
}

// inside runs f on a thread in the machine's network. Sockets that it makes stay there.
func (m *machine) inside(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/run/netns/%s-m%d", m.lab.prefix, m.n))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

const probePort = 7007

// answerProbes sends every packet back until the test ends.
func answerProbes(t testing.TB, m *machine) {
	t.Helper()
	var c *net.UDPConn
	m.inside(t, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: probePort})
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// probeFor measures round trips of small packets, the next one sent whether or not the last came back.
// One that is lost counts as a second.
func probeFor(t testing.TB, m *machine, to string, d time.Duration) (p50, p99 time.Duration) {
	t.Helper()
	var c *net.UDPConn
	m.inside(t, func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.ParseIP(to), Port: probePort})
		return err
	})
	defer c.Close()
	n := int(d / probeEvery)
	sent, rtt := make([]time.Time, n), make([]time.Duration, n)
	for i := range rtt {
		rtt[i] = time.Second
	}
	var mu sync.Mutex
	go func() {
		buf := make([]byte, 64)
		for {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			now := time.Now()
			if i := int(buf[0]) | int(buf[1])<<8; k >= 2 && i < n {
				mu.Lock()
				rtt[i] = now.Sub(sent[i])
				mu.Unlock()
			}
		}
	}()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		mu.Lock()
		sent[i] = time.Now()
		mu.Unlock()
		c.Write([]byte{byte(i), byte(i >> 8), 1, 2, 3, 4})
	}
	time.Sleep(time.Second)
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(rtt)
	return rtt[n/2].Round(10 * time.Microsecond), rtt[n*99/100].Round(10 * time.Microsecond)
}
