package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

const (
	// maxForward bounds a forwarded body, in bytes; build logs are the greatest, some tens of MiB.
	maxForward = 256 << 20
	// maxForwardPath bounds a forwarded path, in bytes: two store path names and some.
	maxForwardPath = 600
)

// forwardable are the files of a binary cache that Nix asks for besides narinfos and NARs. Sources in
// Nix, src/libstore: binary-cache-store.cc (listings, debuginfo, realisations, build traces), log-store.
var forwardable = regexp.MustCompile(`^(` + strings.Join([]string{
	`[0-9a-z]{32}\.ls`,
	`log/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+`,
	`realisations/sha256:[0-9a-z]{52,64}![0-9A-Za-z+._?=-]+\.doi`,
	`build-trace-v2/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+/[0-9A-Za-z+._?=-]+\.doi`,
	`debuginfo/[0-9a-f]{4,128}(\.debug)?`,
}, "|") + `)$`)

// CanForward tells whether a request's path (unescaped, with or without its leading slash) is one that
// [Client.Forward] passes on.
func CanForward(p string) bool {
	p = strings.TrimPrefix(p, "/")
	return len(p) <= maxForwardPath && path.Clean(p) == p && forwardable.MatchString(p)
}

// Forward answers r, a GET or HEAD for a path that [CanForward] allows, with the cache's own answer: its
// body and its Content-Type, -Encoding and -Length untouched. Nothing of the client's request but method,
// path and Accept-Encoding is sent on, and no header of the answer but those that describe the body.
//
// On an error (ErrAbsent, ErrUnreachable, ErrForbidden) nothing was written and the caller may answer.
// If the answer breaks after it began, Forward panics with http.ErrAbortHandler, which resets the
// connection, as the client must not take the part for the whole.
func (c *Client) Forward(w http.ResponseWriter, r *http.Request) error {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if !CanForward(name) || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fmt.Errorf("%s %.80q: %w", r.Method, r.URL.Path, ErrForbidden)
	}
	u := c.join(name)
	ticket, err := c.gate(r.Context(), u, false)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeoutCause(r.Context(), c.t.Forward, errTooSlow)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	header := http.Header{}
	if e := r.Header.Get("Accept-Encoding"); e != "" && len(e) < 256 {
		header.Set("Accept-Encoding", e)
	}
	resp, err := c.ask(request{ctx: ctx, cancel: cancel, method: r.Method, url: u, header: header, timeout: c.t.NarInfo, ticket: ticket})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.note(&UnreachableError{URL: show(u), Cause: &StatusError{resp.StatusCode}})
	}
	if resp.ContentLength > maxForward {
		return fmt.Errorf("%s: %d bytes: %w", show(u), resp.ContentLength, verify.ErrTooLarge)
	}
	for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Length", "Etag", "Last-Modified"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	// What a stranger wrote must not act as a page of this machine.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if resp.Header.Get("Content-Type") == "" {
		w.Header()["Content-Type"] = nil // no guess
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	if err := c.pass(w, resp, cancel); err != nil {
		c.log.Debug("forwarded answer broke", "url", show(u), "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// pass copies a body that must make progress.
func (c *Client) pass(w io.Writer, resp *http.Response, cancel context.CancelCauseFunc) error {
	watch := time.AfterFunc(c.t.Idle, func() { cancel(errIdle) })
	defer watch.Stop()
	buf := make([]byte, 32<<10)
	for total := int64(0); ; {
		watch.Reset(c.t.Idle)
		n, err := resp.Body.Read(c.limit.Piece(buf))
		watch.Stop()
		c.wire.Add(int64(n))
		if werr := c.limit.Wait(resp.Request.Context(), n); werr != nil {
			return werr
		}
		if total += int64(n); total > maxForward {
			return verify.ErrTooLarge
		}
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
