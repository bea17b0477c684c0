//go:build linux

package faults

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

// honestly is the cell that others are measured against.
var honestly = &fault{name: "none", honest: true, blame: blameNone}

// faults is the matrix's rows, from the connection up.
var faults = []*fault{
	// The connection.
	{name: "connection refused", listen: at(refusing, "http://"), static: refusing, claimsNothing: true, quick: true},
	{name: "SYN dropped", listen: at(blackhole, "http://"), static: blackhole, claimsNothing: true},
	{name: "reset at once", listen: at(resetting, "http://"), static: resetting, claimsNothing: true},
	{name: "accepts and is mute", listen: at(mute, "http://"), static: mute, claimsNothing: true},
	{name: "talks nonsense", listen: at(garbler, "http://"), static: garbler, claimsNothing: true},
	{name: "name does not resolve", listen: at(unknownName, "http://"), static: unknownName, claimsNothing: true},
	{name: "TLS: mute", only: kindUpstream, listen: at(mute, "https://")},
	{name: "TLS: nonsense", only: kindUpstream, listen: at(garbler, "https://")},
	{name: "TLS: certificate that nobody signed", only: kindUpstream, listen: func(s *source) error { s.serveTLS(); s.applied.Add(1); return nil }, quick: true},
	{name: "TLS: another identity than expected", only: kindPeer, static: impostor, claimsNothing: true},

	// Waiting.
	{name: "hang before a narinfo's header", onNarInfo: (*request).hang, quick: true},
	{name: "hang after a narinfo's header", onNarInfo: stopAt(func(int) int { return 0 }, (*request).hang)},
	{name: "hang within a narinfo", onNarInfo: stopAt(half, (*request).hang)},
	{name: "dribble narinfos, 10 B/s", onNarInfo: dribble(1, 100*time.Millisecond), quick: true},
	{name: "hang before a NAR's header", onNAR: (*request).hang, quick: true},
	{name: "hang after a NAR's header", onNAR: stopAt(func(int) int { return 0 }, (*request).hang)},
	{name: "stall at a NAR's byte 1", onNAR: stopAt(func(n int) int { return min(n, 1) }, (*request).hang)},
	{name: "stall at a NAR's half", onNAR: stopAt(half, (*request).hang), quick: true},
	{name: "stall before a NAR's last byte", onNAR: stopAt(func(n int) int { return n - 1 }, (*request).hang)},
	{name: "dribble NARs, 20 B/s", onNAR: dribble(1, 50*time.Millisecond), quick: true},
	{name: "dribble NARs, 20 kB/s", onNAR: dribble(1000, 50*time.Millisecond), honest: true, quick: true},
	{name: "slowloris: a narinfo's header at 20 B/s", onNarInfo: slowHeader},
	{name: "slowloris: a NAR's header at 20 B/s", onNAR: slowHeader},
	{name: "slowloris: streams towards the agent", only: kindPeer, peer: slowRequests, onNAR: (*request).hang},
	{name: "the group's proof hangs", only: kindPeer, peer: hangingProof, onNAR: (*request).hang},

	// Ending.
	{name: "truncate a narinfo", onNarInfo: stopAt(half, (*request).cut)},
	{name: "truncate NARs", onNAR: stopAt(half, (*request).cut), quick: true},
	{name: "truncate NARs, length adjusted", onNAR: func(q *request) { q.body = q.body[:len(q.body)/2]; q.serve(q.body) }},
	{name: "reset within a NAR", onNAR: stopAt(half, reset)},
	{name: "reset within a narinfo", onNarInfo: stopAt(half, reset)},
	{name: "empty narinfo", onNarInfo: func(q *request) { q.serve(nil) }},
	{name: "empty NAR", onNAR: func(q *request) { q.serve(nil) }},

	// Wrong bytes.
	{name: "extend NARs", only: kindPeer, nar: extended},
	// What follows after the signed size is not even read.
	{name: "extend NARs", only: kindUpstream, honest: true, blame: blameNone, nar: extended},
	{name: "flip the first byte", nar: flip(func(int) int { return 0 }), blame: blameBanned},
	{name: "flip the middle byte", nar: flip(half), blame: blameBanned, quick: true},
	{name: "flip the last byte", nar: flip(func(n int) int { return n - 1 }), blame: blameBanned, quick: true},
	{name: "flip the first byte, 6 MB/s", nar: flip(func(int) int { return 0 }), onNAR: dribble(64<<10, 10*time.Millisecond), blame: blameBanned},
	{name: "flip the middle byte, 6 MB/s", nar: flip(half), onNAR: dribble(64<<10, 10*time.Millisecond), blame: blameBanned},
	{name: "flip the last byte, 6 MB/s", nar: flip(func(n int) int { return n - 1 }), onNAR: dribble(64<<10, 10*time.Millisecond), blame: blameBanned},
	{name: "flip a byte of the file as sent", blame: blameBanned, onNAR: func(q *request) { q.body[len(q.body)/2] ^= 0x55; q.serve(q.body) }},
	{name: "garbage for NARs", blame: blameBanned, nar: func(_ *source, _ *storePath, nar []byte) []byte { rand.Read(nar); return nar }},
	{name: "another path's valid NAR", nar: func(s *source, p *storePath, _ []byte) []byte {
		for i := range s.c.paths {
			if s.c.paths[i] == p {
				return s.c.paths[(i+1)%len(s.c.paths)].nar
			}
		}
		return nil
	}},
	{name: "a valid NAR of the right size", blame: blameBanned, nar: func(_ *source, _ *storePath, nar []byte) []byte {
		n := len(nar)
		b := fileNAR(noise(int(binary.LittleEndian.Uint64(nar[88:])), 99))
		return append(b, make([]byte, max(0, n-len(b)))...)[:n]
	}},
	{name: "lie about size: Content-Length of 1 PiB", onNAR: func(q *request) {
		q.w.Header().Set("Content-Length", fmt.Sprint(1<<50))
		q.send(q.body)
		q.hang()
	}},

	// Narinfos that lie.
	{name: "narinfo: garbage", narinfo: func(_ *source, _ *storePath, t string) string {
		b := make([]byte, len(t))
		rand.Read(b)
		return string(b)
	}},
	{name: "narinfo: wrong NarSize", narinfo: func(_ *source, p *storePath, t string) string { return set(t, "NarSize", fmt.Sprint(len(p.nar)+1)) }},
	{name: "narinfo: NarSize of 8 EiB", narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "NarSize", "9223372036854775807") }},
	{name: "narinfo: no signature", narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "Sig", "") }, quick: true},
	{name: "narinfo: wrong signature", narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "Sig", junkSig("faults-1")) }},
	{name: "narinfo: signature of another key", narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "Sig", junkSig("other-1")) }},
	{name: "narinfo: extra signatures", honest: true, blame: blameNone, narinfo: func(_ *source, _ *storePath, t string) string {
		return t + "Sig: " + junkSig("other-1") + "\nSig: " + junkSig("faults-1") + "\n"
	}},
	{name: "narinfo: junk signatures first", honest: true, blame: blameNone, quick: true, narinfo: func(_ *source, p *storePath, t string) string {
		return set(t, "Sig", "") + "Sig: nonsense\nSig: faults-1:AAAA\nSig: " + junkSig("faults-1") + "\nSig: " + p.sig + "\n"
	}},
	{name: "narinfo: wrong references", narinfo: func(_ *source, p *storePath, t string) string { return set(t, "References", p.Base()) }},
	{name: "narinfo: another store directory", narinfo: func(_ *source, _ *storePath, t string) string {
		return strings.ReplaceAll(t, "/nix/store/", "/gnu/store/")
	}},
	{name: "narinfo: of another path", narinfo: func(s *source, p *storePath, t string) string {
		if p == s.c.top() {
			return s.c.paths[0].narinfo(s.kind)
		}
		return s.c.top().narinfo(s.kind)
	}},
	{name: "narinfo: absolute URL to a dead port", blame: blameNamed, only: kindUpstream, narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "URL", "http://127.0.0.1:1/secret") }},
	{name: "narinfo: absolute URL", only: kindPeer, honest: true, blame: blameNone, narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "URL", "http://127.0.0.1:1/secret") }},
	{name: "narinfo: URL with file:", only: kindUpstream, narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "URL", "file:///etc/shadow") }},
	{name: "narinfo: URL with ../", only: kindUpstream, narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "URL", "../../../../etc/shadow") }},
	{name: "narinfo: URL with ../", only: kindPeer, honest: true, blame: blameNone, narinfo: func(_ *source, _ *storePath, t string) string { return set(t, "URL", "../../../../etc/shadow") }},
	{name: "narinfo: unknown compression", only: kindUpstream, narinfo: packed("zap")},

	// Too much.
	{name: "endless headers for narinfos", onNarInfo: endless("HTTP/1.1 200 OK\r\n", "X-More: and more\r\n")},
	{name: "endless headers for NARs", onNAR: endless("HTTP/1.1 200 OK\r\n", "X-More: and more\r\n")},
	{name: "narinfo of 10 GB", quick: true, onNarInfo: endless("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "StorePath: /nix/store/x\n")},
	{name: "narinfo without end", onNarInfo: endless("HTTP/1.1 200 OK\r\n\r\n", "X: y\n")},
	{name: "gzip bomb for narinfos", onNarInfo: bomb("gzip", "gzip")},
	{name: "gzip bomb for NARs", onNAR: bomb("gzip", "gzip")},
	{name: "xz bomb for NARs", only: kindUpstream, compression: "xz", onNAR: bombIf("xz")},
	{name: "zstd bomb for NARs", only: kindUpstream, compression: "zstd", onNAR: bombIf("zstd")},

	// Answers that are none.
	{name: "redirect narinfos to localhost", onNarInfo: redirect("http://127.0.0.1:1/secret")},
	{name: "redirect narinfos to file:", onNarInfo: redirect("file:///etc/shadow")},
	{name: "redirect narinfos in a loop", onNarInfo: redirect("SELF")},
	{name: "redirect NARs to localhost", onNAR: redirect("http://127.0.0.1:1/secret")},
	{name: "redirect NARs to file:", onNAR: redirect("file:///etc/shadow")},
	{name: "redirect NARs in a loop", onNAR: redirect("SELF")},
	{name: "403 for narinfos", only: kindUpstream, blame: blameNone, onNarInfo: status(403)},
	{name: "403 for narinfos it claims", only: kindPeer, onNarInfo: status(403)},
	{name: "404 for narinfos", only: kindUpstream, blame: blameNone, onNarInfo: status(404), quick: true},
	{name: "404 for narinfos it claims", only: kindPeer, onNarInfo: status(404)},
	{name: "410 for narinfos", only: kindUpstream, blame: blameNone, onNarInfo: status(410)},
	{name: "410 for narinfos it claims", only: kindPeer, onNarInfo: status(410)},
	{name: "429 for narinfos", onNarInfo: status(429)},
	{name: "429 for narinfos, Retry-After 60", onNarInfo: status(429, "Retry-After", "60"), quick: true},
	{name: "500 for narinfos", onNarInfo: status(500)},
	{name: "503 for narinfos", onNarInfo: status(503)},
	{name: "503 for narinfos, Retry-After 60", onNarInfo: status(503, "Retry-After", "60")},
	{name: "403 for NARs", onNAR: status(403)},
	{name: "404 for NARs", onNAR: status(404), quick: true},
	{name: "410 for NARs", onNAR: status(410)},
	{name: "429 for NARs", onNAR: status(429)},
	{name: "429 for NARs, Retry-After 60", onNAR: status(429, "Retry-After", "60")},
	{name: "500 for NARs", onNAR: status(500), quick: true},
	{name: "503 for NARs", onNAR: status(503)},
	{name: "503 for NARs, Retry-After 60", onNAR: status(503, "Retry-After", "60")},
	{name: "everything is reset", any: reset},

	// What only peers can do.
	{name: "announces NARs on their way, brings none", only: kindPeer, peer: announce(2, false), claimsNothing: true, quick: true},
	{name: "announces bytes it holds, sends garbage", only: kindPeer, peer: announce(3, true), claimsNothing: true, quick: true,
		nar: func(_ *source, _ *storePath, nar []byte) []byte { rand.Read(nar); return nar }},
	{name: "announces bytes it holds, hangs", only: kindPeer, peer: announce(3, true), claimsNothing: true, onNAR: (*request).hang},
}

func extended(_ *source, _ *storePath, nar []byte) []byte { return append(nar, "more"...) }

// impostor is a peer at whose address another identity is expected.
func impostor(s *source) (string, error) {
	other, err := p2ptest.Start(p2ptest.Config{Forget: true})
	if err != nil {
		return "", err
	}
	other.Close()
	r, err := p2ptest.Start(p2ptest.Config{Listen: "/ip4/127.0.0.1/tcp/0", Forget: true})
	if err != nil {
		return "", err
	}
	s.peer, s.end = r, r.Close
	s.applied.Add(1)
	return r.Addrs()[0] + "/p2p/" + other.ID(), nil
}

// slowRequests opens as many streams as it may and says little on each.
func slowRequests(ctx context.Context, s *source, id string) error {
	for range 24 {
		stream, err := s.peer.Open(ctx, id, p2ptest.ProtoHTTP)
		if err != nil {
			return err
		}
		go func() {
			defer stream.Reset()
			for _, b := range []byte("GET /nix-cache-info HTTP/1.1\r\nX: " + strings.Repeat("a", 4000)) {
				if _, err := stream.Write([]byte{b}); err != nil {
					return
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-s.stop:
					return
				}
			}
		}()
	}
	return nil
}

// hangingProof opens the group's exchange and leaves it at that.
func hangingProof(ctx context.Context, s *source, id string) error {
	stream, err := s.peer.Open(ctx, id, p2ptest.ProtoGroup)
	if err != nil {
		return err
	}
	_, err = io.WriteString(stream, "half a nonce")
	return err
}

// announce tells of all paths as on their way, with stage as on the wire; held says that all of each can
// be had already.
func announce(stage byte, held bool) func(context.Context, *source, string) error {
	return func(ctx context.Context, s *source, id string) error {
		stream, err := s.peer.Open(ctx, id, p2ptest.ProtoFlights)
		if err != nil {
			return err
		}
		var body []byte
		for _, p := range s.c.paths {
			body = binary.LittleEndian.AppendUint64(body, p.Hash().Digest().Key())
			if !held {
				body = append(body, stage, 0)
				continue
			}
			body = append(body, stage, 1)
			body = binary.AppendUvarint(body, 0)
			body = binary.AppendUvarint(body, uint64(len(p.nar)))
		}
		s.applied.Add(1)
		_, err = stream.Write(p2ptest.Frame(1, body))
		return err
	}
}

// bombIf bombs where the compression is that one.
func bombIf(compression string) func(*request) {
	return func(q *request) {
		if q.path.compression == compression {
			bomb("", compression)(q)
			return
		}
		q.serve(q.body)
	}
}
