package p2p

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// always grants memory.
func always(int64) bool { return true }

// FuzzSnapshot: what is accepted answers every question without a panic and encodes to itself.
func FuzzSnapshot(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		filter, count, err := readSnapshot(bytes.NewReader(b), int64(len(b)), always)
		if err != nil {
			return
		}
		if count < 0 || count > maxFingerprints {
			t.Fatalf("%d keys", count)
		}
		var s haveSet
		s.replace(filter, count)
		for i := range uint64(2000) {
			s.Has(i * 0x9e3779b97f4a7c15)
		}
		if filter != nil && int64(len(filter.Fingerprints)) != (int64(len(b))-snapshotHeader)/2 {
			t.Fatalf("%d fingerprints from %d bytes", len(filter.Fingerprints), len(b))
		}
	})
}

// FuzzDelta: what is accepted is what was encoded.
func FuzzDelta(f *testing.F) {
	read := func(b []byte) (added, removed []uint64, err error) {
		err = readDelta(bufio.NewReader(bytes.NewReader(b)), int64(len(b)), func(a, r []uint64) error {
			added, removed = append(added, a...), append(removed, r...)
			return nil
		})
		return added, removed, err
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		added, removed, err := read(b)
		if err != nil {
			if !errors.Is(err, errFilter) {
				t.Fatal(err)
			}
			return
		}
		a2, r2, err := read(encodeDelta(nil, added, removed))
		if err != nil || !slices.Equal(added, a2) || !slices.Equal(removed, r2) {
			t.Fatalf("%v: %x %x, %x %x", err, added, removed, a2, r2)
		}
		s := haveSet{on: true}
		if err := s.apply(added, removed); err != nil {
			t.Fatal(err)
		}
		for _, k := range removed {
			if s.Has(k) {
				t.Fatal("removed key is claimed")
			}
		}
	})
}

// TestALongDeltaIsReadInPieces: of thousands of keys none is lost, and what comes before the rest counts already.
func TestALongDeltaIsReadInPieces(t *testing.T) {
	var added, removed []uint64
	for i := range uint64(5*deltaStep + 7) {
		added, removed = append(added, 2*i), append(removed, 2*i+1)
	}
	body := encodeDelta(nil, added, removed)
	for _, n := range []int{len(body), len(body) - 8*deltaStep, 10} {
		var a, r []uint64
		err := readDelta(bufio.NewReader(bytes.NewReader(body[:n])), int64(len(body)), func(x, y []uint64) error {
			a, r = append(a, x...), append(r, y...)
			return nil
		})
		whole := n == len(body)
		if (err == nil) != whole || whole && !(slices.Equal(a, added) && slices.Equal(r, removed)) {
			t.Errorf("%d of %d bytes: %d and %d keys, %v", n, len(body), len(a), len(r), err)
		}
		if n > 10 && !slices.Equal(a, added) {
			t.Errorf("%d of %d bytes: only %d added keys", n, len(body), len(a))
		}
	}
}

// fuzzStream is a have-set stream that was received whole.
type fuzzStream struct {
	network.Stream
	io.Reader
}

func (s *fuzzStream) Read(b []byte) (int, error)      { return s.Reader.Read(b) }
func (s *fuzzStream) SetReadDeadline(time.Time) error { return nil }

// bareHost has no network.
func bareHost(c Catalog) *Host {
	h := &Host{log: slog.New(slog.DiscardHandler), now: time.Now, catalog: c, journal: newJournal(),
		slots: newSendSlots(maxSending), coding: newCoding(), talk: rate.NewLimiter(0, 0)}
	h.cfg.StoreDir = "/nix/store"
	h.peers = peerTable{host: h, byID: map[peer.ID]*Peer{}}
	h.memory = haveMemory{host: h, most: 1 << 20}
	h.standing = newStanding(h, "")
	h.gater, h.dialer = newGater(h), newDialer(h)
	h.introductions = h.newIntroductions()
	return h
}

// FuzzFrame: no stream of frames, however made, gets more memory than there is or leaves anything behind.
func FuzzFrame(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		h := bareHost(nil)
		p := h.peers.get("x")
		s := &fuzzStream{Reader: bytes.NewReader(b)}
		p.haveStream, p.haveBudget = s, rate.NewLimiter(haveRate, haveBurst)
		r := haveReader{h: h, p: p, s: s, r: bufio.NewReader(s)}
		if err := r.run(); err == nil {
			t.Fatal("a stream that ends is an error")
		}
		if h.memory.used > h.memory.most || h.memory.used < 0 {
			t.Fatalf("%d bytes held", h.memory.used)
		}
		h.memory.forget(p)
		if h.memory.used != 0 || p.have.size() != 0 {
			t.Fatalf("%d bytes left", h.memory.used)
		}
	})
}

// FuzzPeerRequest: whatever a stranger sends, it is answered from what is public or not at all.
func FuzzPeerRequest(f *testing.F) {
	c := newFakeCatalog()
	public, publicSum := c.add(f, 1, 3000, verify.ScopePublic)
	secret, secretSum := c.add(f, 2, 3000, verify.ScopeGroup)
	for _, target := range []string{
		"/nix-cache-info", "/" + public.Digest().String() + ".narinfo", "/" + secret.Digest().String() + ".narinfo",
		"/" + binarycache.NARURL(public, publicSum), "/" + binarycache.NARURL(secret, secretSum),
		"/" + binarycache.NARURL(public, publicSum) + chainSuffix, "/" + binarycache.NARURL(secret, secretSum) + chainSuffix, "/.chain",
		"/" + secret.String() + ".narinfo", "/../../etc/passwd", "*",
		"/", "/nar", "/nar/", "/.narinfo", "/nix/store/", "/have", "/paths", "/index", "/all.narinfo",
	} {
		f.Add([]byte("GET " + target + " HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9\r\n\r\n"))
	}
	h := bareHost(c)
	p := h.peers.get("x")
	secretNAR, publicNAR := c.paths[secret].nar[:16], c.paths[public].nar[:16]
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		func() {
			defer func() {
				if e := recover(); e != nil && e != http.ErrAbortHandler {
					panic(e)
				}
			}()
			h.handle(w, q.WithContext(context.WithValue(t.Context(), peerKey{}, p)))
		}()
		switch w.Code {
		case 200, 206, 404, 416, 503:
		default:
			t.Fatalf("status %d", w.Code)
		}
		body := w.Body.Bytes()
		if bytes.Contains(body, secretNAR) || bytes.Contains(body, []byte(secret.String())) {
			t.Fatalf("a stranger got what is the group's with %q", b)
		}
		named := strings.Contains(q.URL.Path, public.String()) || strings.Contains(q.URL.Path, public.Digest().String())
		if !named && (bytes.Contains(body, []byte(public.String())) || bytes.Contains(body, publicNAR)) {
			t.Fatalf("a path was listed to who did not name it: %q", b)
		}
	})
}

// FuzzStanding: no standing file makes the agent fail.
func FuzzStanding(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseStanding(b)
		if err == nil && len(list) > standingMaxBans+standingMaxGood {
			t.Fatal(len(list), "records")
		}
	})
}

// duplex reads what the other says and drops what we say.
type duplex struct {
	io.Reader
	io.Writer
}

// FuzzGroup: nobody is taken into the group without the secret.
func FuzzGroup(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := newGroup(nil)
		if err != nil {
			t.Fatal(err)
		}
		if g.respond(duplex{bytes.NewReader(b), io.Discard}, "self", "other") == nil {
			t.Fatal("admitted as initiator")
		}
		if g.initiate(duplex{bytes.NewReader(b), io.Discard}, "self", "other") == nil {
			t.Fatal("admitted as responder")
		}
	})
}

// TestHostileFiltersAreRefused names the classes of malformed filters; each would read past the end.
func TestHostileFiltersAreRefused(t *testing.T) {
	header := func(count uint64, segment, starts, total uint32) []byte {
		le := binary.LittleEndian
		b := le.AppendUint64(nil, count)
		b = le.AppendUint64(b, 7)
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, segment), starts), total)
		return append(b, make([]byte, 2*min(total, 1<<16))...)
	}
	for name, b := range map[string][]byte{
		"starts between segments":   header(1, 4, 5, 13),
		"segment not a power of 2":  header(1, 3, 3, 9),
		"no segments":               header(1, 0, 9, 9),
		"no starts":                 header(1, 4, 0, 8),
		"sum overflows":             header(1, 1<<31, 1<<31, 4),
		"more keys than room":       header(14, 4, 4, 12),
		"more than there may be":    header(1, 4, 4, maxFingerprints+1),
		"fewer bytes than it says":  header(1, 4, 4, 12)[:40],
		"shorter than its header":   header(1, 4, 4, 12)[:20],
		"longer than its last byte": append(header(1, 4, 4, 12), 0),
	} {
		if _, _, err := readSnapshot(bytes.NewReader(b), int64(len(b)), always); err == nil {
			t.Error("accepted: " + name)
		}
	}
	good, err := encodeSnapshot(nil, []uint64{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	filter, count, err := readSnapshot(bytes.NewReader(good), int64(len(good)), always)
	if err != nil || count != 3 || !filter.Contains(2) {
		t.Error("a good one is refused:", count, err)
	}
}
