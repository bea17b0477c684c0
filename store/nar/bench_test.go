package nar_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/store/nar"
)

// realTree returns a tree of real files: $FLURRY_BENCH_TREE (such as an unpacked store path), else Go's own sources.
func realTree(b *testing.B) string {
	b.Helper()
	if dir := os.Getenv("FLURRY_BENCH_TREE"); dir != "" {
		return dir
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "src")
}

// pair times ours and nix-store --dump in turn, each into a fresh sink, and reports bytes and ratio.
func pair(b *testing.B, root string, sink func() (io.Writer, *os.File, func())) {
	var ours, nixs time.Duration
	var size int64
	if err := exec.Command("nix-store", "--dump", root).Run(); err != nil { // warms the page cache
		b.Fatal(err)
	}
	for b.Loop() {
		w, _, end := sink()
		began := time.Now()
		n, err := nar.Open(b.Context(), root)
		if err == nil {
			_, err = n.WriteRange(b.Context(), w, 0, n.Size())
		}
		ours += time.Since(began)
		end()
		if err != nil {
			b.Fatal(err)
		}
		size = n.Size()

		_, f, end := sink()
		cmd := exec.Command("nix-store", "--dump", root)
		cmd.Stdout = f
		began = time.Now()
		err = cmd.Run()
		nixs += time.Since(began)
		end()
		if err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(0)
	b.ReportMetric(float64(size)*float64(b.N)/ours.Seconds()/1e9, "GB/s")
	b.ReportMetric(float64(size)*float64(b.N)/nixs.Seconds()/1e9, "nix-GB/s")
	b.ReportMetric(nixs.Seconds()/ours.Seconds(), "×nix-store--dump")
}

func null(b *testing.B) func() (io.Writer, *os.File, func()) {
	return func() (io.Writer, *os.File, func()) {
		f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		return plain{f}, f, func() { f.Close() }
	}
}

// socket is a loopback connection whose other end throws everything away.
func socket(b *testing.B) func() (io.Writer, *os.File, func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return func() (io.Writer, *os.File, func()) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 1<<20)
			for {
				if _, err := peer.Read(buf); err != nil {
					return
				}
			}
		}()
		tcp := c.(*net.TCPConn)
		f, err := tcp.File()
		if err != nil {
			b.Fatal(err)
		}
		return tcp, f, func() { f.Close(); c.Close(); <-done; peer.Close() }
	}
}

func BenchmarkAgainstNix(b *testing.B) {
	tree := realTree(b)
	big := b.TempDir()
	if err := os.WriteFile(filepath.Join(big, "big"), make([]byte, 256<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	b.Run("real tree to null", func(b *testing.B) { pair(b, tree, null(b)) })
	b.Run("real tree to TCP", func(b *testing.B) { pair(b, tree, socket(b)) })
	b.Run("one big file to null", func(b *testing.B) { pair(b, big, null(b)) })
	b.Run("one big file to TCP", func(b *testing.B) { pair(b, big, socket(b)) })
}

func BenchmarkManySmallFiles(b *testing.B) {
	root := manyFiles(b, 50_000)
	b.Run("to null", func(b *testing.B) { pair(b, root, null(b)) })
	b.Run("write", func(b *testing.B) {
		n := open(b, root)
		w, _, end := null(b)()
		defer end()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := n.WriteRange(b.Context(), w, 0, n.Size()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nar.Open(b.Context(), root); err != nil {
				b.Fatal(err)
			}
		}
	})
}
