//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/flurry-nix/flurry/store/nar"
)

// cpuRow compares what a NAR from a peer costs with its parts, each measured alone: reading and framing
// the NAR, TLS over TCP (both ends), SHA-256, writing the spool file, and serving it to Nix. Whoever writes a file gets pages
// for it that were freed a moment ago, as what a page costs that was free for long is the virtual machine's; what is held against
// each other is of the same round.
func cpuRow(b *bench) (*result, error) {
	c, err := b.corpus("gib")
	if err != nil {
		return nil, err
	}
	n, err := b.neighbours(c, nil)
	if err != nil {
		return nil, err
	}
	defer n.stop()
	older := n
	if b.before != "" {
		if older, err = b.neighboursOf(b.before, c, nil); err != nil {
			return nil, err
		}
		defer older.stop()
	}
	res := &result{}
	p := c.Paths[0]
	tree := ""
	if trees, _ := filepath.Glob(filepath.Join(c.realDir(), p.Hash+"-*")); len(trees) == 1 {
		tree = trees[0]
	}
	file := filepath.Join(c.static(), p.NARName)
	gb := float64(p.Size) / 1e9
	const tcp, bare = "not in the sum: TCP with sendfile, both ends", "plain TCP: NAR by sendfile, SHA-256, spool, serve"
	type stage struct {
		name string
		run  func() (time.Duration, error)
	}
	stages := []stage{
		{"NAR", func() (time.Duration, error) { return narStage(b.ctx, tree) }},
		{"TLS over TCP, both ends", func() (time.Duration, error) { return tlsStage(p.Size) }},
		{"SHA-256", func() (time.Duration, error) { return hashStage(p.Size) }},
		{"spool", func() (time.Duration, error) {
			if err := b.freePages(p.Size); err != nil {
				return 0, err
			}
			return spoolStage(b.tmp, p.Size)
		}},
		{"serve", func() (time.Duration, error) { return serveStage(file) }},
		{tcp, func() (time.Duration, error) { return tcpStage(file) }},
		{bare, func() (time.Duration, error) {
			if err := b.freePages(p.Size); err != nil {
				return 0, err
			}
			return plainTCP(b.ctx, tree, b.tmp)
		}},
	}
	const ours, before, sums, ratio = "flurry, sender and receiver", "before, sender and receiver", "the first five stages", "flurry / the first five stages"
	agents := func(n *neighbours, name string) (float64, error) {
		if err := n.forget(b); err != nil {
			return 0, err
		}
		if err := b.freePages(p.Size); err != nil {
			return 0, err
		}
		t, err := n.fromPeer(b, p)
		res.sample(name, "CPU s/GB", t.cpu.Seconds()/gb)
		res.sample(name+", verified", "GB/s", gb/t.first.Seconds())
		return t.cpu.Seconds() / gb, errors.Join(err, n.forget(b))
	}
	pairs := func(olderFirst bool) (total float64, err error) { // of ours; who comes first changes
		for k := range 2 {
			switch isOlder := (k == 0) == olderFirst; {
			case !isOlder:
				total, err = agents(n, ours)
			case older != n:
				_, err = agents(older, before)
			}
			if err != nil {
				return 0, err
			}
		}
		return total, nil
	}
	for round := range b.rounds {
		total, err := pairs(round%2 == 1)
		if err != nil {
			return nil, err
		}
		sum := 0.0
		for i, s := range stages {
			used, err := s.run()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			res.sample(s.name, "CPU s/GB", used.Seconds()/gb)
			if i < 5 {
				sum += used.Seconds() / gb
			}
		}
		res.sample(sums, "CPU s/GB", sum)
		again, err := pairs(round%2 == 0) // a round's stages lie between two of its transfers
		if err != nil {
			return nil, err
		}
		res.sample(ratio, "", (total+again)/2/sum)
	}
	total, plain := res.median(ours), res.median(bare)
	res.plain("plain TCP / flurry", plain/total)
	res.plain("plain TCP / the sum of its own stages", plain/(res.median(tcp)+res.median("SHA-256")+res.median("spool")+res.median("serve")))
	res.most("CPU of flurry / sum of the stages", res.median(ratio), 1.15)
	return res, nil
}

// freePages writes a file of size bytes and a little more, and removes it: what is written next gets its pages.
func (b *bench) freePages(size int64) error {
	_, err := spoolStage(b.tmp, size+size/16)
	return err
}

// threadCPU is what the calling thread used; the caller is locked to it.
func threadCPU() time.Duration { return usage(syscall.RUSAGE_THREAD) }

func usage(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// onThread measures what fn uses of its own thread.
func onThread(fn func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadCPU()
	err := fn()
	return threadCPU() - before, err
}

// narStage reads and frames a NAR.
func narStage(ctx context.Context, tree string) (time.Duration, error) {
	return onThread(func() error {
		a, err := nar.Open(ctx, tree)
		if err != nil {
			return err
		}
		_, err = a.WriteRange(ctx, struct{ io.Writer }{io.Discard}, 0, a.Size())
		return err
	})
}

func hashStage(size int64) (time.Duration, error) {
	buf := make([]byte, 1<<20)
	return onThread(func() error {
		h := sha256.New()
		for range size >> 20 {
			h.Write(buf)
		}
		h.Sum(nil)
		return nil
	})
}

// spoolStage writes size bytes to a new file.
func spoolStage(dir string, size int64) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "spool-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	buf := make([]byte, 256<<10)
	return onThread(func() error {
		for off := int64(0); off < size; off += int64(len(buf)) {
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
		}
		return nil
	})
}

// plainTCP carries a NAR from its tree to Nix as agents without encryption could at best: the sender gives the
// files to the socket, the receiver hashes and spools what it reads, in 256 KiB, then gives the spool file to
// Nix's socket. It is what TLS and streams cost, and all that an agent does beside.
func plainTCP(ctx context.Context, tree, dir string) (time.Duration, error) {
	spool, err := os.CreateTemp(dir, "spool-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	in, out, err := tcpPair()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	defer out.Close()
	before := usage(syscall.RUSAGE_SELF)
	sent := make(chan error, 1)
	go func() {
		defer in.Close()
		a, err := nar.Open(ctx, tree)
		if err == nil {
			_, err = a.WriteRange(ctx, in, 0, a.Size())
		}
		sent <- err
	}()
	free, full := make(chan []byte, 4), make(chan []byte, 4)
	for range cap(free) {
		free <- make([]byte, 256<<10)
	}
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		h := sha256.New()
		for b := range full {
			h.Write(b)
			free <- b[:cap(b)]
		}
		h.Sum(nil)
	}()
	var off int64
	for err == nil {
		b := <-free
		var n int
		if n, err = out.Read(b); n > 0 {
			if _, werr := spool.WriteAt(b[:n], off); werr != nil {
				err = werr
			}
			off += int64(n)
			full <- b[:n]
		}
	}
	close(full)
	<-hashed
	if err != io.EOF {
		return 0, err
	}
	used := usage(syscall.RUSAGE_SELF) - before
	served, err := serveStage(spool.Name())
	return used + served, errors.Join(err, <-sent)
}

// serveStage sends a file with sendfile; who reads it is not counted.
func serveStage(file string) (time.Duration, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in, out, err := tcpPair()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer out.Close()
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{out}, make([]byte, 256<<10))
	}()
	used, err := onThread(func() error { _, err := io.Copy(in, f); return err })
	in.Close()
	<-read
	return used, err
}

// tcpStage is serveStage with the reader's end.
func tcpStage(file string) (time.Duration, error) {
	before := usage(syscall.RUSAGE_SELF)
	_, err := serveStage(file)
	return usage(syscall.RUSAGE_SELF) - before, err
}

func tcpPair() (a, b net.Conn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	b, err = ln.Accept()
	return a, b, err
}

// tlsStage carries size bytes over TLS 1.3 on loopback; both ends are in this process.
func tlsStage(size int64) (time.Duration, error) {
	cert, err := certificate()
	if err != nil {
		return 0, err
	}
	in, out, err := tcpPair()
	if err != nil {
		return 0, err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	sender, receiver := tls.Client(in, cfg), tls.Server(out, cfg)
	defer sender.Close()
	defer receiver.Close()
	before := usage(syscall.RUSAGE_SELF)
	sent := make(chan error, 1)
	go func() {
		buf := make([]byte, 256<<10)
		for left := size; left > 0; {
			n, err := sender.Write(buf[:min(left, int64(len(buf)))])
			if err != nil {
				sent <- err
				return
			}
			left -= int64(n)
		}
		sent <- nil
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(receiver, size), make([]byte, 64<<10))
	return usage(syscall.RUSAGE_SELF) - before, errors.Join(err, <-sent)
}

func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
