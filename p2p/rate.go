package p2p

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

// throttle holds a flow of bytes to a rate. A nil throttle lets everything pass. Safe for concurrent use.
type throttle struct {
	limiter *rate.Limiter
	most    int // bytes per piece
}

// newThrottle returns a throttle to bytesPerSecond, nil for 0 (unlimited).
func newThrottle(bytesPerSecond int64) *throttle {
	if bytesPerSecond <= 0 {
		return nil
	}
	perSecond := float64(bytesPerSecond) / wireFactor
	piece := int(min(max(perSecond*pieceTime.Seconds(), pieceLeast), pieceMost))
	burst := max(int(perSecond*burstTime.Seconds()), 2*piece)
	return &throttle{limiter: rate.NewLimiter(rate.Limit(perSecond), burst), most: piece}
}

// piece cuts buf to what may be moved at once.
func (t *throttle) piece(buf []byte) []byte {
	if t == nil || len(buf) <= t.most {
		return buf
	}
	return buf[:t.most]
}

// wait blocks until n bytes, at most one piece, fit the rate.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t == nil || n == 0 {
		return nil
	}
	return t.limiter.WaitN(ctx, n)
}

// writer holds what is written to w to the rate. It returns w itself where there is none, so that
// nothing is lost of what w can do.
func (t *throttle) writer(ctx context.Context, w io.Writer) io.Writer {
	if t == nil {
		return w
	}
	return &throttledWriter{ctx, t, w}
}

type throttledWriter struct {
	ctx context.Context
	t   *throttle
	w   io.Writer
}

func (w *throttledWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		part := w.t.piece(b)
		if err := w.t.wait(w.ctx, len(part)); err != nil {
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
