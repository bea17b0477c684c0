// Package binarycache is the common part of serving Nix's binary cache protocol, to Nix and to peers:
// names of files, nix-cache-info, narinfo and NAR answers with ranges. It decides nothing about who
// may have what, and never opens anything by a name from the network.
//
// Format: Nix manual, "HTTP Binary Cache Store" and "Binary Cache Format".
package binarycache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// Content types, as cache.nixos.org sends them.
const (
	narInfoType = "text/x-nix-narinfo"
	narType     = "application/x-nix-nar"
)

// narNameLen is the length of <store hash>-<NarHash in base32>.nar.
const narNameLen = verify.StoreHashLen + 1 + 52 + len(".nar")

// NARURL is the stable, relative URL of a path's uncompressed NAR. It says all that is needed to find
// the NAR again after a restart or an upgrade: Nix remembers it for 30 days.
func NARURL(h verify.StoreHash, narHash verify.Hash) string {
	return "nar/" + h.String() + "-" + narHash.Base32() + ".nar"
}

// ParseNARURL is the reverse of [NARURL]; ok is false for anything else.
func ParseNARURL(s string) (h verify.StoreHash, narHash verify.Hash, ok bool) {
	name, found := strings.CutPrefix(s, "nar/")
	if !found || len(name) != narNameLen || name[verify.StoreHashLen] != '-' || !strings.HasSuffix(name, ".nar") {
		return h, narHash, false
	}
	h, err1 := verify.ParseStoreHash(name[:verify.StoreHashLen])
	narHash, err2 := verify.ParseHashBase32(name[verify.StoreHashLen+1 : narNameLen-len(".nar")])
	return h, narHash, err1 == nil && err2 == nil
}

// Info is the text of nix-cache-info.
func Info(storeDir string, priority int) string {
	return fmt.Sprintf("StoreDir: %s\nWantMassQuery: 1\nPriority: %d\n", storeDir, priority)
}

// WriteText answers 200 with a small text, GET or HEAD.
func WriteText(w http.ResponseWriter, r *http.Request, contentType, text string) {
	h := w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	if r.Method != http.MethodHead {
		io.WriteString(w, text)
	}
}

// WriteNarInfo answers 200 with a narinfo.
func WriteNarInfo(w http.ResponseWriter, r *http.Request, n *verify.NarInfo) {
	WriteText(w, r, narInfoType, n.String())
}

// NotFoundText is the whole answer to a miss; Nix takes it for "not in this cache".
const NotFoundText = "not found\n"

// NotFoundBecauseText is NotFoundText with a reason.
func NotFoundBecauseText(why string) string { return "not found: " + why + "\n" }

// NotFound answers 404, which Nix remembers for an hour.
func NotFound(w http.ResponseWriter) { WriteNotFound(w, NotFoundText) }

// NotFoundBecause is NotFound with a line that tells why.
func NotFoundBecause(w http.ResponseWriter, why string) { WriteNotFound(w, NotFoundBecauseText(why)) }

// WriteNotFound answers 404 with text.
func WriteNotFound(w http.ResponseWriter, text string) {
	h := w.Header()
	h["Content-Type"] = []string{"text/plain"}
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, text)
}

// Content is one NAR of known size that can be written in ranges.
type Content interface {
	Size() int64 // bytes
	// WriteRange writes bytes [off, off+length) to w and returns how many it wrote. It may block until
	// they are there. When w is an [io.ReaderFrom] it should offer files to it.
	WriteRange(ctx context.Context, w io.Writer, off, length int64) (int64, error)
}

// Counted returns content that reports to add how many bytes of it were written, also of an answer that
// broke off.
func Counted(content Content, add func(int64) (sum int64)) Content {
	return counted{content, add}
}

type counted struct {
	Content
	add func(int64) int64
}

func (c counted) WriteRange(ctx context.Context, w io.Writer, off, length int64) (int64, error) {
	n, err := c.Content.WriteRange(ctx, w, off, length)
	c.add(n)
	return n, err
}

// pieceSize is how many bytes are written under one progress deadline.
const pieceSize = 8 << 20

// ServeNAR answers GET and HEAD for a NAR, with at most one range. patience is how long one piece of
// 8 MiB may take to leave (0: as long as the reader stays connected). If content fails after the header left, the connection is cut, so that no reader takes a
// part for the whole: ServeNAR then panics with [http.ErrAbortHandler], after calling failed.
func ServeNAR(w http.ResponseWriter, r *http.Request, content Content, patience time.Duration, failed func(error)) {
	size := content.Size()
	off, length, status := parseRange(r.Header.Get("Range"), size)
	h := w.Header()
	h["Content-Type"] = []string{narType}
	h["Accept-Ranges"] = []string{"bytes"}
	if status == http.StatusRequestedRangeNotSatisfiable {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		h.Set("Content-Length", "0")
		w.WriteHeader(status)
		return
	}
	h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+length-1, size))
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if err := writePieces(w, r, content, off, length, patience); err != nil {
		if r.Context().Err() == nil {
			failed(err)
		}
		panic(http.ErrAbortHandler)
	}
}

func writePieces(w http.ResponseWriter, r *http.Request, content Content, off, length int64, patience time.Duration) error {
	var written int64
	control := http.NewResponseController(w)
	past, ok := w.(io.ReaderFrom)
	if ok = ok && patience == 0 && length >= pastBuffers; ok { // without its header an answer would be copied at its beginning
		control.Flush()
	}
	for written < length {
		if patience > 0 {
			control.SetWriteDeadline(time.Now().Add(patience))
		}
		p := &piece{r.Context(), content, off + written, min(pieceSize, length-written)}
		var n int64
		var err error
		if ok {
			n, err = past.ReadFrom(p)
		} else {
			n, err = p.WriteTo(w)
		}
		written += n
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("content ended early")
		}
	}
	if patience > 0 {
		control.SetWriteDeadline(time.Time{})
	}
	return nil
}

// pastBuffers, bytes: NARs for Nix are from this size on written past net/http's buffers, which would cut each
// write after a file that sendfile took in two.
const pastBuffers = 64 << 10

// piece is a part of a NAR on its way out. As an io.Reader it passes through net/http to the connection, which
// takes it as an io.WriterTo.
type piece struct {
	ctx     context.Context
	content Content
	off     int64
	left    int64 // bytes
}

// WriteTo implements io.WriterTo.
func (p *piece) WriteTo(w io.Writer) (int64, error) {
	n, err := p.content.WriteRange(p.ctx, w, p.off, p.left)
	p.off, p.left = p.off+n, p.left-n
	return n, err
}

// Read implements io.Reader, for what does not know WriterTo.
func (p *piece) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.left)]
	into := bytes.NewBuffer(b[:0])
	n, err := p.content.WriteRange(p.ctx, into, p.off, int64(len(b)))
	p.off, p.left = p.off+n, p.left-n
	return int(n), err
}

// Range tells which part of a NAR of size bytes a request is for; length is 0 if there is no such part.
func Range(r *http.Request, size int64) (off, length int64) {
	off, length, _ = parseRange(r.Header.Get("Range"), size)
	return off, length
}

// parseRange reads a Range header of one range. Anything that it does not understand means the whole,
// as RFC 9110 section 14.2 allows.
func parseRange(header string, size int64) (off, length int64, status int) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(last, ",") {
		return 0, size, http.StatusOK
	}
	if first == "" { // the last N bytes
		n, err := strconv.ParseUint(last, 10, 63)
		if err != nil {
			return 0, size, http.StatusOK
		}
		if n == 0 || size == 0 {
			return 0, 0, http.StatusRequestedRangeNotSatisfiable
		}
		off = max(0, size-int64(n))
		return off, size - off, http.StatusPartialContent
	}
	from, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return 0, size, http.StatusOK
	}
	to := uint64(size) - 1
	if last != "" {
		if to, err = strconv.ParseUint(last, 10, 63); err != nil || to < from {
			return 0, size, http.StatusOK
		}
		to = min(to, uint64(size)-1)
	}
	if int64(from) >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return int64(from), int64(to-from) + 1, http.StatusPartialContent
}
