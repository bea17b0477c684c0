package substituter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/flurry-nix/flurry/verify"
)

// direct is a NAR that this machine has no room to collect. It goes from a central cache to one reader
// as it comes; the last bytes wait for the verdict on the whole. Peers cannot help here: their bytes may
// not leave before all are verified. Used by one request.
type direct struct {
	all *flights
	v   *verify.Verified

	body io.Closer // of the upstream that is being read, nil before
	r    *verify.Reader
	pos  int64 // of the next byte of r
	buf  []byte
}

func newDirect(a *flights, v *verify.Verified) *direct {
	a.noRoom.Do(func() {
		a.log.Warn("no room to collect NARs: they go straight from the central cache to Nix; free disk space or raise limits.cache_size", "dir", a.dir)
	})
	return &direct{all: a, v: v}
}

// Size implements binarycache.Content.
func (d *direct) Size() int64 { return d.v.NarSize() }

// WriteRange implements binarycache.Content. A source that fails is replaced by the next at the byte
// where it failed.
func (d *direct) WriteRange(ctx context.Context, w io.Writer, off, length int64) (written int64, err error) {
	err = errNoSource
	for _, up := range d.all.finder.upstreams {
		src := upstreamSource{up, d.all}
		for written < length {
			if err = d.seek(ctx, src, off+written); err != nil {
				break
			}
			var n int
			if n, err = d.r.Read(d.buf[:min(int64(len(d.buf)), length-written)]); n > 0 {
				d.pos += int64(n)
				d.all.received(src, int64(n))
				k, werr := w.Write(d.buf[:n])
				if written += int64(k); werr != nil {
					return written, werr
				}
			}
			if err != nil && written < length {
				break
			}
		}
		if written == length {
			return written, nil
		}
		d.close()
		var wrong *verify.MismatchError
		if errors.As(err, &wrong) {
			d.all.stats.Rejected.Add(1)
			src.convict(err)
			if off+written > 0 {
				return written, err // some of it went out
			}
		}
		if ctx.Err() != nil {
			return written, ctx.Err()
		}
	}
	return written, fmt.Errorf("without room to collect it: %w", err)
}

// seek makes off the next byte of r, from the upstream that is open or else from src.
func (d *direct) seek(ctx context.Context, src upstreamSource, off int64) error {
	if d.r == nil || d.pos > off {
		d.close()
		f := &flight{hash: d.v.Path().Hash(), v: d.v, all: d.all}
		body, err := src.open(ctx, f, 0, d.v.NarSize())
		if err != nil {
			return err
		}
		d.body, d.r, d.pos = body, verify.NewReader(body, d.v.NarHash(), d.v.NarSize()), 0
		if d.buf == nil {
			d.buf = make([]byte, 256<<10)
		}
	}
	n, err := io.CopyN(io.Discard, d.r, off-d.pos) // hashed, too: the verdict is on the whole
	d.pos += n
	return err
}

// close ends the connection with the upstream; d may be used again.
func (d *direct) close() {
	if d.body != nil {
		d.body.Close()
		d.body, d.r = nil, nil
	}
}
