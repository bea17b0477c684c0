package static

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/flurry-nix/flurry/discovery"
)

// zone is a DNS server on loopback whose records tests may change.
type zone struct {
	mu    sync.Mutex
	addrs map[string][]string // fully qualified name → IP addresses
	addr  string
	asked []net.Conn // by its resolver
}

func serveZone(t *testing.T) *zone {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{addrs: make(map[string][]string), addr: pc.LocalAddr().String()}
	started, done := make(chan struct{}), make(chan error, 1)
	srv := &dns.Server{PacketConn: pc, Handler: z, NotifyStartedFunc: func() { close(started) }}
	go func() { done <- srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := srv.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		z.mu.Lock()
		defer z.mu.Unlock()
		for _, c := range z.asked { // a question that a cancelled Run has left behind would wait for its timeout
			_ = c.Close()
		}
	})
	return z
}

func (z *zone) set(name string, ips ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addrs[name] = ips
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	ips, ok := z.addrs[q.Question[0].Name]
	z.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	for _, ip := range ips {
		hdr := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Rrtype: q.Question[0].Qtype, Ttl: 1}
		a := netip.MustParseAddr(ip)
		switch {
		case a.Is4() && hdr.Rrtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: hdr, A: a.AsSlice()})
		case a.Is6() && hdr.Rrtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m) // a lost answer is asked for again
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "udp", z.addr)
		if err == nil {
			z.mu.Lock()
			z.asked = append(z.asked, c)
			z.mu.Unlock()
		}
		return c, err
	}}
}

// run starts the finder and returns what it finds; it is stopped, and waited for, at the test's end.
func run(t *testing.T, f *Finder) <-chan discovery.Found {
	t.Helper()
	out := make(chan discovery.Found, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, func(p discovery.Found) { out <- p }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return out
}

// expect reads until the hint called name has exactly those addresses.
func expect(t *testing.T, found <-chan discovery.Found, name string, addrs ...string) discovery.Found {
	t.Helper()
	deadline := time.After(30 * time.Second)
	var last discovery.Found
	for {
		select {
		case last = <-found:
			if last.Name == name && slices.Equal(last.Addrs, addrs) {
				return last
			}
		case <-deadline:
			t.Fatalf("%s was never found at %v; last %+v", name, addrs, last)
		}
	}
}

func TestNamesAreFollowedWhereTheyMove(t *testing.T) {
	z := serveZone(t)
	z.set("a.flurry.test.", "10.0.0.1", "fd00::1")
	f, err := New([]string{"a.flurry.test.:7000", "/dns6/a.flurry.test/tcp/7000"},
		Config{Resolver: z.resolver(), Every: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	found := run(t, f)
	expect(t, found, "a.flurry.test.:7000", both("/dns/a.flurry.test", "7000")...)
	got := expect(t, found, "a.flurry.test.:7000", "/ip4/10.0.0.1/tcp/7000", "/ip6/fd00::1/tcp/7000",
		"/ip4/10.0.0.1/udp/7000/quic-v1", "/ip6/fd00::1/udp/7000/quic-v1")
	if !got.Keep || got.Via != discovery.ViaStatic {
		t.Errorf("%+v is not to be kept", got)
	}
	expect(t, found, "/dns6/a.flurry.test/tcp/7000", "/ip6/fd00::1/tcp/7000")
	z.set("a.flurry.test.", "10.0.0.2")
	expect(t, found, "a.flurry.test.:7000", both("/ip4/10.0.0.2", "7000")...)
}

func TestANameThatDoesNotResolveIsHintedAtAndRetried(t *testing.T) {
	z := serveZone(t)
	f, err := New([]string{"late.flurry.test.", "10.0.0.9"}, Config{Resolver: z.resolver(), Every: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	found := run(t, f)
	expect(t, found, "late.flurry.test.", both("/dns/late.flurry.test", "6491")...)
	expect(t, found, "10.0.0.9", both("/ip4/10.0.0.9", "6491")...)
	z.set("late.flurry.test.", "10.0.0.3")
	expect(t, found, "late.flurry.test.", both("/ip4/10.0.0.3", "6491")...)
}

func TestANameOfManyAddressesIsBounded(t *testing.T) {
	z := serveZone(t)
	z.set("many.flurry.test.", "0.0.0.0", "224.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5",
		"10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.0.10")
	f, err := New([]string{"many.flurry.test."}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	f.resolver = z.resolver()
	got, err := f.resolve(t.Context(), f.peers[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Addrs) != discovery.MaxAddrs || slices.Contains(got.Addrs, "/ip4/0.0.0.0/tcp/6491") {
		t.Errorf("addresses: %v", got.Addrs)
	}
}

// counter is a Resolver without a network, for bubbles of fake time.
type counter struct {
	asked atomic.Int32
	fail  bool
}

func (c *counter) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	c.asked.Add(1)
	if c.fail {
		return nil, &net.DNSError{Err: "no such host"}
	}
	return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
}

func TestNamesAreResolvedPeriodicallyAndWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{}
		f, err := New([]string{"a.example"}, Config{Resolver: c})
		if err != nil {
			t.Fatal(err)
		}
		run(t, f)
		asked := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := int(c.asked.Load()); got != want {
				t.Fatalf("%d lookups, want %d", got, want)
			}
		}
		asked(0, 1)
		asked(time.Minute, 1)
		f.Refresh()
		asked(0, 2)
		for range 10 { // merged, and not at once
			f.Refresh()
		}
		asked(0, 2)
		asked(leastGap, 3)
		asked(DefaultEvery, 4)
	})
}

func TestAFailingNameIsRetriedSoonThenLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{fail: true}
		f, err := New([]string{"a.example"}, Config{Resolver: c})
		if err != nil {
			t.Fatal(err)
		}
		run(t, f)
		time.Sleep(8 * time.Second) // at 0, 1, 3, 7 s
		synctest.Wait()
		if n := c.asked.Load(); n != 4 {
			t.Errorf("%d lookups in the first 8 s, want 4", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := c.asked.Load(); n < 60 || n > 70 {
			t.Errorf("%d lookups in an hour, want one a minute", n)
		}
	})
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	_, err := New([]string{"10.0.0.1", "http://a", "b:0"}, Config{})
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 2 {
		t.Fatalf("New: %v, want two errors", err)
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
