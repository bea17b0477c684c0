package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/flurry-nix/flurry/verify"
	"github.com/klauspost/compress/zstd"
)

// NarInfo asks for the narinfo of h and returns it with its text, which [Client.Parse] accepts again.
// Errors: ErrAbsent; ErrUnreachable; verify.ErrUntrusted, verify.ErrMalformed or verify.ErrTooLarge
// for an answer that is of no use.
func (c *Client) NarInfo(ctx context.Context, h verify.StoreHash) (*verify.Verified, string, error) {
	c.narinfos.Add(1)
	b, err := c.small(ctx, h.String()+".narinfo", verify.MaxNarInfo, false)
	if err != nil {
		return nil, "", err
	}
	raw := string(b)
	v, err := c.Parse(h, raw)
	if err != nil {
		return nil, "", fmt.Errorf("%s/%v.narinfo: %w", c.base, h, err)
	}
	return v, raw, nil
}

// Parse checks a narinfo's text that came from this cache earlier: it must be for h, of the configured
// store directory, and signed by a configured key. Errors as for NarInfo. It sends nothing.
func (c *Client) Parse(h verify.StoreHash, raw string) (*verify.Verified, error) {
	n, err := verify.ParseNarInfo(raw)
	if err != nil {
		return nil, err
	}
	if n.StorePath.Hash() != h {
		return nil, fmt.Errorf("narinfo for %s: %w: asked for %v", n.StorePath.Base(), verify.ErrMalformed, h)
	}
	if n.StorePath.Dir() != c.storeDir {
		return nil, fmt.Errorf("narinfo for %.300s: %w: not of %s", n.StorePath, verify.ErrMalformed, c.storeDir)
	}
	return c.keys.Verify(n)
}

// CacheInfo is a cache's nix-cache-info.
type CacheInfo struct {
	StoreDir      string // "" if not said
	Priority      int    // 0 if not said, as Nix reads it
	WantMassQuery bool
}

// maxCacheInfo bounds a nix-cache-info, in bytes; real ones have 60.
const maxCacheInfo = 16 << 10

// CacheInfo asks for nix-cache-info. As a health probe it does not wait for the breaker's pause to end,
// and its success closes the breaker. Errors: ErrAbsent (the cache is there, but is no Nix cache),
// ErrUnreachable, verify.ErrMalformed, verify.ErrTooLarge.
func (c *Client) CacheInfo(ctx context.Context) (CacheInfo, error) {
	b, err := c.small(ctx, "nix-cache-info", maxCacheInfo, true)
	if err != nil {
		return CacheInfo{}, err
	}
	var info CacheInfo
	known := false // a login page is no health
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "StoreDir":
			info.StoreDir, known = value, true
		case "Priority":
			info.Priority, err = strconv.Atoi(value)
		case "WantMassQuery":
			info.WantMassQuery = value == "1"
		}
		if err != nil {
			return CacheInfo{}, fmt.Errorf("%s/nix-cache-info line %.80q: %w", c.base, strings.TrimSpace(line), verify.ErrMalformed)
		}
	}
	if !known {
		return CacheInfo{}, fmt.Errorf("%s/nix-cache-info: %w: no StoreDir", c.base, verify.ErrMalformed)
	}
	return info, nil
}

// small asks for a file of at most limit bytes.
func (c *Client) small(ctx context.Context, name string, limit int64, urgent bool) ([]byte, error) {
	u := c.join(name)
	t, err := c.gate(ctx, u, urgent)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start := time.Now()
	resp, err := c.ask(request{ctx: ctx, cancel: cancel, method: http.MethodGet, url: u, timeout: c.smallTimeout(), ticket: t})
	if resp != nil || errors.Is(err, ErrAbsent) {
		c.mu.Lock()
		c.rtt.add(time.Since(start))
		c.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, c.note(&UnreachableError{URL: show(u), Cause: &StatusError{resp.StatusCode}})
	}
	return c.readSmall(ctx, cancel, u, resp, limit)
}

func (c *Client) readSmall(ctx context.Context, cancel context.CancelCauseFunc, u *url.URL, resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	late := time.AfterFunc(c.t.Small, func() { cancel(errTooSlow) })
	defer late.Stop()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	c.wire.Add(int64(len(b)))
	switch {
	case err == nil:
	case context.Cause(ctx) != nil:
		return nil, c.unreachable(u, context.Cause(ctx))
	default:
		return nil, c.note(&UnreachableError{URL: show(u), Cause: err})
	}
	if int64(len(b)) <= limit {
		b, err = undoEncoding(b, resp.Header.Get("Content-Encoding"), limit)
	}
	if err == nil && int64(len(b)) > limit {
		err = verify.ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", show(u), err)
	}
	return b, nil
}

// undoEncoding undoes a Content-Encoding that was not asked for; some servers add one all the same.
// It returns at most limit+1 bytes.
func undoEncoding(b []byte, encoding string, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return b, nil
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case "br":
		r = brotli.NewReader(bytes.NewReader(b))
	case "zstd":
		var d *zstd.Decoder
		if d, err = newZstd(bytes.NewReader(b)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, fmt.Errorf("%w: Content-Encoding %.40q", verify.ErrMalformed, encoding)
	}
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(r, limit+1))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: Content-Encoding %s: %v", verify.ErrMalformed, encoding, err)
	}
	return b, nil
}

// join returns the URL of a file of the cache. name is a clean relative path, not escaped.
func (c *Client) join(name string) *url.URL {
	u := *c.base
	u.RawPath = u.EscapedPath() + "/" + (&url.URL{Path: name}).EscapedPath()
	u.Path += "/" + name
	return &u
}

// maxURL bounds a NAR's URL, in bytes; presigned ones have some hundreds.
const maxURL = 8 << 10

// resolve reads a narinfo's URL field as Nix does: absolute, or to be put after the cache's address.
func (c *Client) resolve(ref string) (*url.URL, error) {
	if len(ref) > maxURL {
		return nil, fmt.Errorf("NAR URL of %d bytes: %w", len(ref), verify.ErrTooLarge)
	}
	for i := range len(ref) {
		if ref[i] <= ' ' || ref[i] == 0x7f {
			return nil, fmt.Errorf("NAR URL %.80q: %w", ref, verify.ErrMalformed)
		}
	}
	path, _, _ := strings.Cut(ref, "?")
	full := ref
	if !strings.Contains(path, "://") {
		full = c.base.String() + "/" + strings.TrimLeft(ref, "/")
	}
	u, err := url.Parse(full)
	if err != nil {
		return nil, fmt.Errorf("NAR URL %.80q: %w", path, verify.ErrMalformed)
	}
	u.Fragment, u.RawFragment = "", ""
	if err := c.hop.mayVisit(u); err != nil {
		return nil, fmt.Errorf("NAR URL %.80q: %w", path, err)
	}
	return u, nil
}
