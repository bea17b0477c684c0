package upstream

import (
	"bufio"
	"compress/bzip2"
	"context"
	"errors"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// zstdWindow bounds a zstd decoder's memory, in bytes: what the zstd program accepts unasked. Nix's
	// level 19 needs 8 MiB, level 22 all of it.
	zstdWindow = 128 << 20
	// inBuffer is read at once from the network for decoders in this process, in bytes.
	inBuffer = 128 << 10
)

// CanDecode tells whether NARs of a narinfo's Compression can be had from a Client.
func CanDecode(compression string) bool {
	switch compression {
	case "none", "xz", "zstd", "bzip2", "gzip", "br":
		return true
	}
	return false
}

// decoder undoes a compression that CanDecode allows. Closing it frees its means and leaves src alone;
// it must be closed after ctx has ended or src is exhausted.
func (c *Client) decoder(ctx context.Context, compression string, src *body) (io.ReadCloser, error) {
	if compression == "none" {
		return io.NopCloser(src), nil
	}
	if compression == "xz" {
		return c.xzReader(ctx, src)
	}
	in := bufio.NewReaderSize(src, inBuffer)
	switch compression {
	case "zstd":
		return c.pooledZstd(in)
	case "bzip2":
		return io.NopCloser(&lenient{src: bzip2.NewReader(in), trailing: bzip2Trailing}), nil
	case "br":
		return io.NopCloser(brotli.NewReader(in)), nil
	default:
		return io.NopCloser(&lenient{open: func() (io.Reader, error) { return gzip.NewReader(in) }, trailing: gzipTrailing}), nil
	}
}

// lenient ends a stream where the bzip2 and gzip programs do: they ignore what follows the last whole
// member. open delays a decoder that reads upon its making, which is done in Read.
type lenient struct {
	open     func() (io.Reader, error)
	src      io.Reader
	n        int64
	err      error // sticks
	trailing func(error) bool
}

func (l *lenient) Read(p []byte) (n int, err error) {
	if l.err != nil {
		return 0, l.err
	}
	if l.src == nil {
		src, err := l.open()
		if l.err = err; err != nil {
			return 0, err
		}
		l.src = src
	}
	n, l.err = l.src.Read(p)
	l.n += int64(n)
	if l.err != nil && l.n > 0 && l.trailing(l.err) {
		l.err = io.EOF
	}
	return n, l.err
}

func gzipTrailing(err error) bool { return errors.Is(err, gzip.ErrHeader) }

func bzip2Trailing(err error) bool {
	return errors.Is(err, bzip2.StructuralError("bad magic value in continuation file"))
}

func newZstd(src io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
}

// zstdReader gives its decoder back when closed.
type zstdReader struct {
	*zstd.Decoder
	c      *Client
	failed bool
}

func (c *Client) pooledZstd(src io.Reader) (io.ReadCloser, error) {
	if d, ok := c.zstds.Get().(*zstd.Decoder); ok {
		if err := d.Reset(src); err == nil {
			return &zstdReader{Decoder: d, c: c}, nil
		}
	}
	d, err := newZstd(src)
	if err != nil {
		return nil, err
	}
	return &zstdReader{Decoder: d, c: c}, nil
}

func (z *zstdReader) Read(p []byte) (int, error) {
	n, err := z.Decoder.Read(p)
	z.failed = z.failed || err != nil && err != io.EOF
	return n, err
}

// Close implements io.Closer.
func (z *zstdReader) Close() error {
	if z.failed || z.Decoder.Reset(nil) != nil {
		z.Decoder.Close()
		return nil
	}
	z.c.zstds.Put(z.Decoder)
	return nil
}
