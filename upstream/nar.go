package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/flurry-nix/flurry/verify"
)

// NARReader is a stream of uncompressed NAR bytes, not yet verified. Read is for one goroutine; Close
// and WireBytes may be called from another, and Close ends a Read that waits.
type NARReader struct {
	body *body
	want int64 // NarSize

	mu     sync.Mutex // guards all below
	src    io.ReadCloser
	skip   int64 // bytes to discard first
	got    int64 // bytes decoded, skipped ones included
	err    error // sticks
	closed bool
}

// NAR starts to stream the NAR of v, uncompressed, from byte off; v must come from this client. It
// returns once the cache answered. The stream ends after exactly NarSize-off bytes with io.EOF, or with
// a *TransferError; its content is the caller's to verify. An uncompressed file is asked for from off
// on, others are decoded from their beginning. Errors: ErrAbsent; ErrUnreachable (after several
// attempts, or one if the breaker is open); ErrCompression, before anything was sent; ErrForbidden or
// verify.ErrMalformed for a URL that is not to be followed. The caller must Close the stream.
func (c *Client) NAR(ctx context.Context, v *verify.Verified, off int64) (*NARReader, error) {
	ref, compression, fileSize := v.Source()
	if compression == "" {
		compression = "bzip2" // as Nix reads a missing field
	}
	if !CanDecode(compression) {
		return nil, &CompressionError{compression}
	}
	if off < 0 || off > v.NarSize() {
		return nil, fmt.Errorf("NAR of %d bytes: no offset %d", v.NarSize(), off)
	}
	if off == v.NarSize() {
		return &NARReader{body: &body{abort: func(error) {}}, src: http.NoBody, want: off, got: off, err: io.EOF}, nil
	}
	u, err := c.resolve(ref)
	if err != nil {
		return nil, err
	}
	first, err := c.gate(ctx, u, true)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	b := &body{
		c: c, ctx: ctx, abort: cancel, url: u, total: -1, first: first, urgent: first.probe,
		hint: fileSize, label: contentCoding(compression),
		// Nothing honest grows by more than an eighth in compression.
		limit: v.NarSize() + v.NarSize()/8 + 1<<20,
		pause: backoff.ExponentialBackOff{InitialInterval: c.t.Retry, MaxInterval: c.t.RetryMax, Multiplier: 2, RandomizationFactor: 0.5},
	}
	b.pause.Reset()
	if compression == "none" {
		b.hint, b.off = v.NarSize(), off
	}
	if err := b.connect(nil); err != nil {
		cancel(nil)
		return nil, err
	}
	b.urgent = false
	r := &NARReader{body: b, want: v.NarSize(), got: b.off, skip: off - b.off}
	if r.src, err = c.decoder(ctx, compression, b); err != nil {
		b.hangUp()
		cancel(nil)
		return nil, err
	}
	return r, nil
}

// contentCoding is how a server may label a file of this compression as a whole.
func contentCoding(compression string) string { return strings.ToLower(compression) }

// WireBytes returns how many bytes were received so far, as the cache stores them.
func (r *NARReader) WireBytes() int64 { return r.body.received.Load() }

// Broke returns when a connection last failed, although the download went on over another; zero: never.
func (r *NARReader) Broke() time.Time {
	if at := r.body.broke.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Read implements io.Reader.
func (r *NARReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 || r.err != nil {
		return 0, r.err
	}
	if r.skip > 0 {
		n, err := io.CopyN(io.Discard, r.src, r.skip)
		r.got += n
		if r.skip -= n; r.skip > 0 {
			return 0, r.fail(err)
		}
	}
	if r.got == r.want {
		return 0, r.finish()
	}
	for {
		n, err := r.src.Read(p[:min(int64(len(p)), r.want-r.got)])
		r.got += int64(n)
		if err != nil && r.got < r.want {
			return n, r.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// finish looks whether the file ends where the NAR does.
func (r *NARReader) finish() error {
	r.body.finishing.Store(true)
	var one [1]byte
	n, err := io.ReadFull(r.src, one[:])
	switch {
	case n > 0:
		return r.fail(fmt.Errorf("%w: it goes on after NarSize", verify.ErrTooLarge))
	case err == io.EOF, errors.Is(r.body.err, ErrUnreachable):
		r.err = io.EOF // nothing that was promised is missing
		return r.err
	}
	return r.fail(err)
}

// fail makes the error that sticks.
func (r *NARReader) fail(err error) error {
	switch {
	case errors.Is(err, verify.ErrTooLarge):
	case r.body.ctx.Err() != nil && context.Cause(r.body.ctx) != errAborted:
		err = context.Cause(r.body.ctx)
	case r.body.err != nil && r.body.err != io.EOF && !errors.Is(r.body.err, errAborted):
		err = r.body.err
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF), r.WireBytes() == 0:
		err = io.ErrUnexpectedEOF
	default:
		err = fmt.Errorf("%w: %v", verify.ErrMalformed, err)
	}
	r.err = &TransferError{URL: show(r.body.url), Wire: r.WireBytes(), Got: r.got, Want: r.want, Cause: err}
	return r.err
}

// Close ends the download and everything that serves it. It is to be called once or more.
func (r *NARReader) Close() error {
	r.body.abort(nil) // lets a waiting Read go
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
	r.src.Close()
	r.body.hangUp()
	return nil
}
