// Package throttle holds flows of bytes to a rate that they share, in pieces small enough that other
// traffic hardly waits behind them.
package throttle

import (
	"context"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// Shape of rate limits. Other traffic waits behind what leaves at once, so pieces are small; a timer
// that fires late must be made up for, so the bucket holds a few of them.
const (
	pieceTime  = 2 * time.Millisecond // of the limit leaves in one write
	burstTime  = 6 * time.Millisecond // of the limit may leave at once after a pause
	pieceLeast = 1400                 // bytes: one packet's worth
	pieceMost  = 64 << 10             // bytes: what the stream multiplexer sends as one frame
	wireFactor = 1.02                 // bytes counted per NAR byte: half of what TLS, yamux, TCP and IP add, so that both the payload's and the wire's rate are near the limit
)

// Throttle holds flows of bytes to one rate. A nil Throttle lets everything pass. Safe for concurrent use.
type Throttle struct {
	limiter *rate.Limiter
	most    int   // bytes per piece
	rate    int64 // bytes per second, as asked for
}

// New returns a throttle to bytesPerSecond, nil for 0 (unlimited).
func New(bytesPerSecond int64) *Throttle {
	if bytesPerSecond <= 0 {
		return nil
	}
	perSecond := float64(bytesPerSecond) / wireFactor
	piece := int(min(max(perSecond*pieceTime.Seconds(), pieceLeast), pieceMost))
	burst := max(int(perSecond*burstTime.Seconds()), 2*piece)
	return &Throttle{limiter: rate.NewLimiter(rate.Limit(perSecond), burst), most: piece, rate: bytesPerSecond}
}

// Rate is what New was given, 0 for a nil Throttle.
func (t *Throttle) Rate() int64 {
	if t == nil {
		return 0
	}
	return t.rate
}

// Piece cuts buf to what may be moved at once.
func (t *Throttle) Piece(buf []byte) []byte {
	if t == nil || len(buf) <= t.most {
		return buf
	}
	return buf[:t.most]
}

// Wait blocks until n bytes, at most one piece, fit the rate.
func (t *Throttle) Wait(ctx context.Context, n int) error {
	if t == nil || n == 0 {
		return nil
	}
	return t.limiter.WaitN(ctx, n)
}

// Writer holds what is written to w to the rate. It returns w itself where there is none, so that
// nothing is lost of what w can do.
func (t *Throttle) Writer(ctx context.Context, w io.Writer) io.Writer {
	if t == nil {
		return w
	}
	return &throttledWriter{ctx, t, w}
}

type throttledWriter struct {
	ctx context.Context
	t   *Throttle
	w   io.Writer
}

func (w *throttledWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		part := w.t.Piece(b)
		if err := w.t.Wait(w.ctx, len(part)); err != nil {
			return n, err
		}
		k, err := w.w.Write(part)
		n += k
		if err != nil {
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}
