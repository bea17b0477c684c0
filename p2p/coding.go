package p2p

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/internal/throttle"
)

// Compression on slow links. The reader asks for it where a peer sends fewer bytes a second than this machine
// compresses; the sender may decline. What is verified are the decoded bytes.
const (
	codingName   = "zstd"
	codingWindow = 512 << 10 // bytes that an encoder and a decoder keep of a NAR
	codingSample = 128 << 10 // bytes that are compressed to see how quick this machine is, and whether it pays
	codingGain   = 1.25      // by how much compressing must be quicker than the link, and the bytes fewer, to be worth it
	codingSlack  = 64 << 10  // bytes by which coded ones may outnumber decoded ones
	codingMost   = 16        // NARs that are compressed side by side; each takes about 2 MiB
)

// coding is what a Host knows of compression. Safe for concurrent use.
type coding struct {
	work   chan struct{} // a processor each, taken while it compresses
	nars   atomic.Int32  // on their way compressed
	speed  atomic.Int64  // NAR bytes per second that this machine compresses, smoothed; 0 unknown
	gotOff atomic.Int64  // bytes that compression kept off the wire, towards us
	outOff atomic.Int64  // and from us

	encoders, decoders sync.Pool
}

func newCoding() *coding {
	return &coding{work: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

func (c *coding) encoder(w io.Writer) *zstd.Encoder {
	e, ok := c.encoders.Get().(*zstd.Encoder)
	if !ok {
		e, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(codingWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	}
	e.Reset(w)
	return e
}

func (c *coding) decoder(r io.Reader) (*zstd.Decoder, error) {
	d, ok := c.decoders.Get().(*zstd.Decoder)
	if !ok {
		d, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(codingWindow))
	}
	return d, d.Reset(r)
}

// try compresses a sample of a NAR and tells whether it becomes enough smaller. It notes how quick that went.
func (c *coding) try(sample []byte) bool {
	e := c.encoder(nil)
	defer c.encoders.Put(e)
	began := time.Now()
	coded := e.EncodeAll(sample, nil)
	speed := int64(float64(len(sample)) / max(time.Since(began).Seconds(), 1e-6))
	if old := c.speed.Load(); old > 0 {
		speed = old + int64(ewmaWeight*float64(speed-old))
	}
	c.speed.Store(speed)
	return float64(len(coded))*codingGain < float64(len(sample))
}

// Compressed returns how many bytes compression kept off the wire, from peers and to them.
func (h *Host) Compressed() (got, sent int64) { return h.coding.gotOff.Load(), h.coding.outOff.Load() }

// wantsCoding tells whether the peer's NARs come quicker compressed: it is beyond the site, where links are slow,
// was seen to send less than this machine compresses, and was not seen to be slower compressed.
func (p *Peer) wantsCoding() bool {
	if !p.beyond() {
		return false
	}
	speed := float64(p.host.coding.speed.Load())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plainRate == 0 || p.plainRate*codingGain > speed {
		return false
	}
	return p.codedRate == 0 || p.codedRate > p.plainRate || p.host.now().Sub(p.codedAt) > rateHalfLife
}

// sampleCoding notes at how many NAR bytes a second a body came, compressed or not.
func (p *Peer) sampleCoding(rate float64, coded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := &p.plainRate
	if coded {
		of, p.codedAt = &p.codedRate, p.host.now()
	}
	if *of == 0 {
		*of = rate
	} else {
		*of += ewmaWeight * (rate - *of)
	}
}

// asksForCoding tells whether a request allows a compressed answer.
func asksForCoding(r *http.Request) bool {
	for _, name := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		if strings.TrimSpace(name) == codingName {
			return true
		}
	}
	return false
}

// coded returns a writer that compresses the answer, to be released after use; nil where that was not asked for, all
// processors are compressing, many NARs are, or the bytes would not become much fewer.
func (h *Host) coded(w http.ResponseWriter, r *http.Request, content binarycache.Content, limits []*throttle.Throttle) *codedWriter {
	off, length := binarycache.Range(r, content.Size())
	if r.Method != http.MethodGet || !asksForCoding(r) || length < codingSample {
		return nil
	}
	c := h.coding
	select {
	case c.work <- struct{}{}:
		defer func() { <-c.work }()
	default:
		return nil
	}
	sample := bytes.NewBuffer(make([]byte, 0, codingSample))
	if _, err := content.WriteRange(r.Context(), sample, off, codingSample); err != nil || !c.try(sample.Bytes()) {
		return nil
	}
	if c.nars.Add(1) > codingMost {
		c.nars.Add(-1)
		return nil
	}
	cw := &codedWriter{ResponseWriter: w, c: c, out: throttled(r.Context(), w, limits)}
	cw.e = c.encoder(&cw.made)
	return cw
}

// codedWriter compresses the body of an answer. It holds a processor only while it compresses, not while the link takes
// what was made.
type codedWriter struct {
	http.ResponseWriter
	c    *coding
	e    *zstd.Encoder
	made bytes.Buffer
	out  io.Writer
	n    int64 // bytes before
	sent int64 // and after
}

// WriteHeader says that the body is compressed; how long it becomes is not known.
func (w *codedWriter) WriteHeader(status int) {
	h := w.Header()
	h.Del("Content-Length")
	h["Content-Encoding"] = []string{codingName}
	w.ResponseWriter.WriteHeader(status)
}

func (w *codedWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		part := b[:min(len(b), codingSample)]
		if err := w.make(func() error { _, err := w.e.Write(part); return err }); err != nil {
			return n, err
		}
		n += len(part)
		w.n += int64(len(part))
		b = b[len(part):]
	}
	return n, nil
}

// make compresses and sends what came of it.
func (w *codedWriter) make(compress func() error) error {
	w.c.work <- struct{}{}
	err := compress()
	<-w.c.work
	if err != nil {
		return err
	}
	n, err := w.made.WriteTo(w.out)
	w.sent += n
	return err
}

func (w *codedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// finish sends what the encoder still holds, within patience. Without it the answer is not complete.
func (w *codedWriter) finish(patience time.Duration) {
	control := http.NewResponseController(w.ResponseWriter)
	control.SetWriteDeadline(time.Now().Add(patience))
	if w.make(w.e.Close) != nil {
		panic(http.ErrAbortHandler)
	}
	control.SetWriteDeadline(time.Time{})
}

// release is to be called when the answer has ended.
func (w *codedWriter) release() {
	w.e.Reset(nil)
	w.c.encoders.Put(w.e)
	w.c.outOff.Add(w.n - w.sent)
	w.c.nars.Add(-1)
}

var errCoding = errors.New("compressed answer is not what it should be")

// decodedBody yields want bytes of a compressed body, and never more, whatever is sent: memory is bounded by
// codingWindow, and what is read by want.
type decodedBody struct {
	wire *wireBody
	c    *coding
	want int64 // bytes still to come
	size int64 // and all together

	mu sync.Mutex // guards d: Close may come while Read waits
	d  *zstd.Decoder
}

func (c *coding) decode(wire *wireBody, want int64) (*decodedBody, error) {
	wire.left = want + codingSlack
	d, err := c.decoder(wire)
	if err != nil {
		wire.Close()
		return nil, fmt.Errorf("%w: %w", errCoding, err)
	}
	return &decodedBody{wire: wire, c: c, want: want, size: want, d: d}, nil
}

func (b *decodedBody) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.d == nil || b.want == 0 {
		return 0, io.EOF
	}
	n, err = b.d.Read(p[:min(int64(len(p)), b.want)])
	if b.want -= int64(n); b.want == 0 && err == nil {
		more := 0
		if more, err = b.d.Read(make([]byte, 1)); more > 0 { // the end, or the stream could not be used again
			err = fmt.Errorf("%w: more than was asked for", errCoding)
		}
	}
	switch {
	case err == io.EOF && b.want > 0:
		err = io.ErrUnexpectedEOF
	case err != nil && err != io.EOF && b.wire.err == nil:
		err = fmt.Errorf("%w: %w", errCoding, err)
	}
	return n, err
}

func (b *decodedBody) Close() error {
	err := b.wire.Close() // ends a Read that waits
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.d != nil {
		b.d.Reset(nil)
		b.c.decoders.Put(b.d)
		b.d = nil
		b.c.gotOff.Add(b.size - b.want - b.wire.n)
	}
	return err
}
