package substituter

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// partialPatience is how long a neighbour's request waits for bytes that are not there yet. It asks only
// for what was announced, so it normally does not wait at all.
const partialPatience = 2 * time.Second

// PartialNAR is a NAR on its way, as neighbours may read it: bytes are served as they are, verified or
// not, since the reader verifies anyway. It implements binarycache.Content.
type PartialNAR struct{ f *flight }

// partial returns the flight's content for neighbours.
func (a *flights) partial(h verify.StoreHash, narHash verify.Hash) (*PartialNAR, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.byHash[narHash]
	if f == nil || f.hash != h || f.v.Scope() != verify.ScopePublic || !f.usable() {
		return nil, ErrAbsent
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers++
	return &PartialNAR{f}, nil
}

// Close ends the reading.
func (p *PartialNAR) Close() error {
	p.f.all.leave(p.f)
	return nil
}

// Size is the NAR's size in bytes.
func (p *PartialNAR) Size() int64 { return p.f.v.NarSize() }

// WriteRange writes bytes that are in the spool, waiting a little for those that are not.
func (p *PartialNAR) WriteRange(ctx context.Context, w io.Writer, off, length int64) (written int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, partialPatience)
	defer cancel()
	f := p.f
	for written < length {
		f.mu.Lock()
		s, changed, ferr := f.spool, f.changed, f.err
		at := off + written
		end := off + length
		if g, ok := f.written.gap(at, end); ok {
			end = g.from
		}
		f.mu.Unlock()
		if ferr != nil {
			return written, ferr
		}
		if end == at {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return written, fmt.Errorf("bytes from %d are not here yet: %w", at, ctx.Err())
			}
		}
		n, err := s.writeTo(w, at, end-at)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
