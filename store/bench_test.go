package store

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/flurry-nix/flurry/verify"
)

// synthetic fills a database that Nix made with that many signed rows of five references each.
func synthetic(b *testing.B, n *nixStore, key signer, rows int) []verify.StorePath {
	b.Helper()
	c, err := sqlite.OpenConn(n.database(), sqlite.OpenReadWrite)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 2))
	paths := make([]verify.StorePath, rows)
	end := sqlitex.Transaction(c)
	for i := range paths {
		var h verify.StoreHash
		var sum verify.Hash
		for j := range h {
			h[j], sum[j] = byte(r.Uint32()), byte(r.Uint32())
		}
		info := &verify.NarInfo{NarHash: sum, NarSize: 1 + r.Int64N(1<<20)}
		info.StorePath, _ = verify.ParseStorePath(fmt.Sprintf("/nix/store/%s-synthetic-package-%d.%d", h, i, i%17))
		paths[i] = info.StorePath
		id := int64(i + 1000)
		for k := range min(i, 5) {
			ref := i - 1 - k*k
			if ref < 0 {
				continue
			}
			info.References = append(info.References, paths[ref].Base())
			err = sqlitex.Execute(c, "insert into Refs values (?, ?)", &sqlitex.ExecOptions{Args: []any{id, ref + 1000}})
		}
		sig := key.name + ":" + base64.StdEncoding.EncodeToString(ed25519.Sign(key.key, []byte(info.Fingerprint())))
		err2 := sqlitex.Execute(c, "insert into ValidPaths (id, path, hash, registrationTime, deriver, narSize, sigs) values (?,?,?,1,?,?,?)",
			&sqlitex.ExecOptions{Args: []any{id, info.StorePath.String(), "sha256:" + hex.EncodeToString(sum[:]),
				info.StorePath.String() + ".drv", info.NarSize, sig}})
		if err != nil || err2 != nil {
			b.Fatal(err, err2)
		}
	}
	end(&err)
	return paths
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func BenchmarkStore200k(b *testing.B) {
	const rows = 200_000
	n, key := newNixStore(b), newSigner("bench-1")
	n.add("first")
	paths := synthetic(b, n, key, rows)
	keys := keysOf(b, []signer{key}, nil)
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			s := New(n.config(), keys)
			began := time.Now()
			if err := s.look(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(time.Since(began).Seconds(), "s/load")
			b.ReportMetric((heap()-before)/1e6, "MB")
			runtime.KeepAlive(s)
		}
	})
	s := New(n.config(), keys)
	s.db.keepIdle(true)
	defer s.db.keepIdle(false)
	if err := s.look(b.Context()); err != nil {
		b.Fatal(err)
	}
	benchBackground(b, s)
	b.Run("Info", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.Info(context.Background(), paths[i*7919%rows].Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Info without idle connections", func(b *testing.B) {
		s := New(n.config(), keys)
		for i := 0; b.Loop(); i++ {
			if _, err := s.Info(context.Background(), paths[i*7919%rows].Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Has", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if !s.Has(paths[i*7919%rows].Hash()) {
				b.Fatal("absent")
			}
		}
	})
}

func benchBackground(b *testing.B, s *Store) {
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			lo, hi, ok := s.idx.nextUnchecked(1<<62, batch)
			if !ok {
				b.Skip("all checked")
			}
			if err := s.judge(b.Context(), lo, hi); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/batch, "µs/path")
	})
	b.Run("recheck", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			hi := s.idx.recs[len(s.idx.recs)-1].id
			if err := s.judge(b.Context(), hi-batch+1, hi); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/batch, "µs/path")
	})
	b.Run("rescan", func(b *testing.B) {
		for b.Loop() {
			if err := s.rescan(b.Context(), true); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sync", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.sync(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
