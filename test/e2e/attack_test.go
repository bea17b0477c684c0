//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

const (
	// attackEnv makes the test binary an attacker: "TARGET NAR SECONDS ADDRESS…".
	attackEnv     = "FLURRY_E2E_ATTACK"
	attackers     = 1000
	attackFor     = 60 * time.Second
	attackMemory  = 256 << 20 // bytes resident, at most
	attackSources = 240       // addresses that the attackers come from
)

// runAttacker is the attacking process's whole life.
func runAttacker(spec string) int {
	f := strings.Fields(spec)
	d, err := time.ParseDuration(f[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	a := p2ptest.Attack{Target: f[0], NAR: f[1], Attackers: attackers}
	for _, s := range f[3:] {
		a.From = append(a.From, netip.MustParseAddr(s))
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	fmt.Println(a.Run(ctx))
	return 0
}

// BenchmarkAttack has a thousand hostile identities, from 240 addresses of the LAN, do the worst they can
// to the built agent, while Nix on its machine fills its store. It prints what that costs the agent and
// Nix, and fails if the agent's resident memory passes 256 MB or Nix does not get its paths.
func BenchmarkAttack(b *testing.B) {
	for range b.N {
		attackOnce(b)
	}
}

func attackOnce(b *testing.B) {
	l := newLab(b, labConfig{machines: 2})
	target, enemy := l.machine[1], l.machine[2]
	bait := l.w.corpus.find(b, "vim-runtime-")
	wanted := l.w.corpus.roots["openssh-client"]
	target.preload(bait.path)
	a := target.startAgent(agentConfig{})
	a.shares(1)
	before := vitalsOf(b, a)

	spec := []string{fmt.Sprintf("/ip4/%s/tcp/6491/p2p/%s", target.ip, a.status().PeerID),
		"nar/" + storeHash(bait.path) + "-" + strings.TrimPrefix(bait.narHash, "sha256:") + ".nar", attackFor.String()}
	for i := range attackSources {
		ip := fmt.Sprintf("10.77.1.%d", 10+i)
		if out, err := exec.Command("ip", "-n", fmt.Sprintf("%s-m%d", l.prefix, enemy.n), "addr", "add", ip+"/24", "dev", "eth0").CombinedOutput(); err != nil {
			b.Fatalf("ip addr add: %v: %s", err, out)
		}
		spec = append(spec, ip)
	}
	attack := l.command(context.Background(), "", fmt.Sprint(enemy.n), "env", attackEnv+"="+strings.Join(spec, " "), "attacker")
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	attack.Args[len(attack.Args)-1] = self
	var out bytes.Buffer
	attack.Stdout, attack.Stderr = &out, os.Stderr
	began := time.Now()
	if err := attack.Start(); err != nil {
		b.Fatal(err)
	}
	time.Sleep(25 * time.Second) // a hundred a second start; then as many are in as are let in
	fill := target.start("nix-store", "-r", wanted)
	var waits []time.Duration
	peak := vitals{}
	for time.Since(began) < attackFor {
		start := time.Now()
		got, err := a.get("/" + storeHash(bait.path) + ".narinfo")
		if err != nil || got.status != 200 {
			b.Errorf("Nix's question: %v %d", err, got.status)
		}
		waits = append(waits, time.Since(start))
		if v := vitalsOf(b, a); v.resident > peak.resident {
			peak = v
		}
		time.Sleep(100 * time.Millisecond)
	}
	filled := fill.wait()
	attack.Wait()
	after := vitalsOf(b, a)
	slices.Sort(waits)
	fmt.Fprintf(os.Stderr, "before:       %v\nunder attack: %v\nafter:        %v\nlet in: %s attackers; narinfos for Nix: p50 %v, worst of %d %v; its closure of %d paths: exit status %d after %.1f s\n",
		before, peak, after, strings.TrimSpace(out.String()), waits[len(waits)/2].Round(10*time.Microsecond), len(waits), waits[len(waits)-1].Round(10*time.Microsecond),
		len(l.w.corpus.closure(wanted)), filled.code, filled.took.Seconds())
	if after.peak > attackMemory {
		b.Errorf("%.0f MB resident", float64(after.peak)/1e6)
	}
	if filled.code != 0 {
		b.Errorf("Nix failed: %s", tail(filled.err, 1000))
	}
	b.ReportMetric(float64(after.peak)/1e6, "MB-peak")
	b.ReportMetric(filled.took.Seconds(), "s-fill")
	l.down()
}
