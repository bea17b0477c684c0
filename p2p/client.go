package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/verify"
)

// Limits of the client of peers.
const (
	clientStreams       = 24               // to one peer at a time; below what servers allow, see maxStreamsPerPeer
	clientIdleStreams   = 16               // kept open for the next question
	paceMemory          = time.Second      // that a peer counts as bringing NARs after one ended
	clientIdle          = 20 * time.Second // shorter than serverIdle, so that no question meets a closing stream
	clientHeaderPatence = 15 * time.Second // a backstop: callers' deadlines are much shorter
	errorBody           = 4 << 10          // bytes read of an answer that says no, so that its stream can be used again
)

// newClient makes the HTTP client that speaks to peers over streams of existing connections.
func newClient(h *Host) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            h.openStream,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    clientIdleStreams,
			MaxConnsPerHost:        clientStreams,
			IdleConnTimeout:        clientIdle,
			ResponseHeaderTimeout:  clientHeaderPatence,
			MaxResponseHeaderBytes: serverHeaderBytes,
			ReadBufferSize:         64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("peers do not redirect") },
	}
}

// NarInfo asks the peer what it knows of a path. The answer is a claim to be verified. ErrAbsent
// means that it does not have it.
func (p *Peer) NarInfo(ctx context.Context, d verify.PathDigest) (*verify.NarInfo, error) {
	resp, err := p.get(ctx, &d, d.String()+".narinfo", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	n, err := verify.ReadNarInfo(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", p.name, err)
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // see io.EOF, so that the stream is used again
	return n, nil
}

// NAR asks the peer for bytes [from, to) of a NAR, whose signed hash and size are known. The body yields
// at most to-from unverified bytes; it ends with io.ErrUnexpectedEOF if there are fewer.
func (p *Peer) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size, from, to int64) (io.ReadCloser, error) {
	header := http.Header{}
	if from > 0 || to < size {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	if rate := p.paceWanted(); rate > 0 {
		header.Set(paceHeader, strconv.FormatInt(rate, 10))
	}
	asked := ""
	if p.wantsCoding() {
		asked = codingName
		header.Set("Accept-Encoding", asked)
	}
	d := h.Digest()
	resp, err := p.get(ctx, &d, binarycache.NARURL(h, narHash), header)
	if err != nil {
		return nil, err
	}
	wire := &wireBody{ReadCloser: resp.Body, ctx: ctx, limit: p.host.download, left: to - from}
	body := &narBody{ReadCloser: wire, wire: wire, p: p, started: time.Now(), before: p.in.Load(), far: p.beyond()}
	switch got := resp.Header.Get("Content-Encoding"); {
	case got != "" && got == asked:
		body.coded = true
		if body.ReadCloser, err = p.host.coding.decode(wire, to-from); err != nil {
			return nil, fmt.Errorf("peer %s: %w", p.name, err)
		}
	case got != "":
		resp.Body.Close()
		return nil, fmt.Errorf("peer %s: answer in a coding that was not asked for", p.name)
	case resp.ContentLength != to-from:
		resp.Body.Close()
		return nil, fmt.Errorf("peer %s: answer of %d bytes where %d were asked for", p.name, resp.ContentLength, to-from)
	}
	p.bringing.Add(1)
	return body, nil
}

// paceWanted is how many bytes per second the peer is asked to send at most, 0 without a limit on downloads: its
// share among those that bring NARs now or did within paceMemory, and a little more, as they are not equally
// quick. If each sent as much as all may, together they would fill the link to this machine.
func (p *Peer) paceWanted() int64 {
	limit := p.host.download.Rate()
	if limit <= 0 {
		return 0
	}
	senders, now := int64(1), p.host.now()
	for _, o := range p.host.peers.everywhere() {
		if o != p && (o.bringing.Load() > 0 || now.Sub(time.Unix(0, o.brought.Load())) < paceMemory) {
			senders++
		}
	}
	return min(limit, limit/senders*3/2)
}

// Chain asks the peer for the chain of a NAR, whose signed hash and size are known: a claim. The peer may
// have to compute it first. ErrAbsent also means that it speaks another version.
func (p *Peer) Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size int64) (verify.Chain, error) {
	n := verify.ChainLen(size)
	if n == 0 {
		return nil, ErrAbsent
	}
	resp, err := p.get(ctx, nil, binarycache.NARURL(h, narHash)+chainSuffix, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	form := make([]byte, n)
	if resp.ContentLength != int64(n) {
		return nil, fmt.Errorf("peer %s: %w: chain of %d bytes where %d were expected", p.name, ErrAbsent, resp.ContentLength, n)
	}
	if _, err := io.ReadFull(resp.Body, form); err != nil {
		return nil, fmt.Errorf("peer %s: chain: %w", p.name, err)
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // see io.EOF, so that the stream is used again
	chain, err := verify.ParseChain(form, size)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w: %w", p.name, ErrAbsent, err)
	}
	return chain, nil
}

// get sends one request about the path d, with header if not nil, and returns a 200, or, for a Range, a 206.
// Without d it is about something that no have-set claims and that may have to be made first:
// neither its absence nor its time count.
func (p *Peer) get(ctx context.Context, d *verify.PathDigest, name string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.name+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if header != nil {
		req.Header = header
	}
	if header.Get("Range") != "" {
		want = http.StatusPartialContent
	}
	start := time.Now()
	resp, err := p.host.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", p.name, withoutURL(err))
	}
	if d != nil {
		p.sampleRTT(time.Since(start))
	}
	if resp.StatusCode == want {
		if d != nil {
			p.answered(true)
		}
		return resp, nil
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, errorBody))
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
		if d != nil && p.Claims(*d) {
			p.falseClaims.Add(1)
			p.answered(false)
		}
		return nil, fmt.Errorf("peer %s: %w", p.name, ErrAbsent)
	case http.StatusServiceUnavailable:
		p.declined(resp.Header.Get("Retry-After"))
		return nil, fmt.Errorf("peer %s: %w", p.name, ErrBusy)
	}
	return nil, fmt.Errorf("peer %s: unexpected status %d", p.name, resp.StatusCode)
}

// withoutURL strips what net/http adds: the URL names a path, which is not for logs.
func withoutURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// wireBody is what a peer sends, as sent: at most left bytes, within the limit on downloads. err is what ended it.
type wireBody struct {
	io.ReadCloser
	ctx   context.Context // of the request; a throttled read must end with it
	limit *throttle.Throttle
	left  int64
	n     int64
	err   error
}

func (b *wireBody) Read(buf []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	buf = b.limit.Piece(buf[:min(int64(len(buf)), b.left)])
	n, err := b.ReadCloser.Read(buf)
	b.left -= int64(n)
	b.n += int64(n)
	if werr := b.limit.Wait(b.ctx, n); werr != nil && err == nil {
		err = werr
	}
	if err != io.EOF {
		b.err = err
	}
	return n, err
}

// narBody counts and times the bytes of a NAR that a peer sends.
type narBody struct {
	io.ReadCloser
	wire    *wireBody // the same, as sent
	coded   bool      // compressed
	far     bool      // from beyond the site
	p       *Peer
	started time.Time
	before  int64 // bytes that the peer had sent by then
	n       atomic.Int64
	sample  []byte // the first bytes that came as they are from beyond the site
	once    sync.Once
}

func (b *narBody) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	now := b.n.Add(int64(n))
	b.p.in.Add(int64(n))
	if now >= minRateBytes && now-int64(n) < minRateBytes {
		b.rateCoding(now, b.took()) // others may be asked for before this one has ended
	}
	if b.far && !b.coded && len(b.sample) < codingSample {
		if b.sample = append(b.sample, buf[:min(n, codingSample-len(b.sample))]...); len(b.sample) == codingSample {
			b.p.host.coding.try(b.sample)
		}
	}
	return n, err
}

func (b *narBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() {
		b.rate()
		b.p.brought.Store(b.p.host.now().UnixNano())
		b.p.bringing.Add(-1)
	})
	return err
}

// rate notes how quick the peer was.
func (b *narBody) rate() {
	n, took := b.n.Load(), b.took()
	if n < minRateBytes && took < minRateTime.Seconds() {
		return
	}
	b.p.sampleRate(max(float64(n)/took, slowestRate))
	b.rateCoding(n, took)
}

// took is the time since the body began, in seconds.
func (b *narBody) took() float64 { return max(time.Since(b.started), time.Microsecond).Seconds() }

// rateCoding notes what the peer sends in all, as this body is one of several.
func (b *narBody) rateCoding(n int64, took float64) {
	if n < minRateBytes {
		return
	}
	b.p.sampleCoding(max(float64(b.p.in.Load()-b.before)/took, slowestRate), b.coded)
}
