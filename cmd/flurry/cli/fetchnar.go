package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/verify"
)

const (
	// partSuffix marks a NAR that is not complete.
	partSuffix = ".part"
	// attempts in a row without a new byte; the agent needs well under a second to restart.
	attempts = 6
	// firstWait is between the first two of them, twice as long each time: 3 s in all.
	firstWait = 100 * time.Millisecond
	// stall is the longest silence. The agent may collect a NAR before its first byte leaves, and Nix
	// itself waits as long.
	stall = 300 * time.Second
)

// retry calls try until it succeeds, fails for good, or failed too often in a row. try tells whether
// it got on, which makes the next failure the first again.
func retry(ctx context.Context, try func() (progress bool, err error)) error {
	wait := firstWait
	for failures := 0; ; {
		progress, err := try()
		if progress {
			failures, wait = 0, firstWait
		}
		failures++
		if err == nil || isFinal(err) || failures >= attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait *= 2
	}
}

// finalError is one that another attempt would only repeat.
type finalError struct{ error }

// Unwrap returns the cause.
func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	_, final := errors.AsType[finalError](err)
	_, local := errors.AsType[*os.PathError](err)
	return final || local || errors.Is(err, control.ErrNotThere) || errors.Is(err, context.Canceled)
}

// nar makes sure that the file name holds v's NAR, and tells whether bytes had to be fetched.
func (f *fetcher) nar(ctx context.Context, v *verify.Verified, name string) (fresh bool, err error) {
	if f.isRight(ctx, v, name) {
		return false, nil
	}
	part, err := os.OpenFile(name+partSuffix, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return false, err
	}
	defer part.Close()
	p := &partial{f: f, v: v, file: part}
	if err := p.readBack(ctx); err != nil {
		return false, err
	}
	err = retry(ctx, func() (bool, error) {
		before := p.check.Written()
		err := p.fetch(ctx)
		return p.check.Written() > before, err
	})
	if errors.Is(err, control.ErrNotThere) {
		err = errors.New("nobody has its bytes any more; try again later")
	}
	if err == nil {
		err = part.Sync()
	}
	if err == nil {
		err = os.Rename(name+partSuffix, name)
	}
	return true, err
}

// isRight tells whether the file is there and holds exactly the signed bytes.
func (f *fetcher) isRight(ctx context.Context, v *verify.Verified, name string) bool {
	file, err := os.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() != v.NarSize() {
		return false
	}
	check := verify.NewChecker(v.NarHash(), v.NarSize())
	if _, err := io.Copy(check, untilDone{ctx, file}); err != nil {
		return false
	}
	return check.Finish() == nil
}

// untilDone is a reader that ends with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// partial is a NAR on its way into a file. check has seen what the file holds.
type partial struct {
	f        *fetcher
	v        *verify.Verified
	file     *os.File
	check    *verify.Checker
	mistaken bool // once already, all of it was wrong
}

// readBack takes up what an earlier fetch left.
func (p *partial) readBack(ctx context.Context) error {
	p.check = verify.NewChecker(p.v.NarHash(), p.v.NarSize())
	_, err := io.Copy(p.check, untilDone{ctx, p.file})
	if _, tooLong := errors.AsType[*verify.MismatchError](err); tooLong {
		return p.restart()
	}
	p.f.progress.add(p.check.Written(), false)
	return err
}

// restart forgets everything.
func (p *partial) restart() error {
	p.f.progress.add(-p.check.Written(), false)
	p.check = verify.NewChecker(p.v.NarHash(), p.v.NarSize())
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.Seek(0, io.SeekStart)
	return err
}

// fetch gets the bytes that are missing.
func (p *partial) fetch(ctx context.Context) error {
	if p.check.Written() < p.v.NarSize() {
		if err := p.transfer(ctx); err != nil {
			return err
		}
	}
	err := p.check.Finish()
	if err == nil {
		return nil
	}
	if rerr := p.restart(); rerr != nil {
		return rerr
	}
	if p.mistaken {
		return finalError{fmt.Errorf("the agent sends wrong bytes: %w", err)}
	}
	p.mistaken = true // what an earlier fetch left may be to blame
	return p.fetch(ctx)
}

// transfer appends what the agent sends.
func (p *partial) transfer(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("the agent sent nothing for %s", stall)) })
	defer watch.Stop()
	url, compression, _ := p.v.Source()
	if compression != "none" || !plainURL(url) {
		return finalError{fmt.Errorf("the agent offers %.80q (compression %.20q) instead of a plain NAR; it is another version than this program", url, compression)}
	}
	body, start, err := p.f.client.Cache(ctx, url, p.check.Written())
	if err != nil {
		return causeOf(ctx, err)
	}
	defer body.Close()
	if start != p.check.Written() {
		if err := p.restart(); err != nil {
			return err
		}
	}
	buf := make([]byte, 256<<10) // few system calls, little memory
	for {
		n, err := body.Read(buf)
		if n > 0 {
			watch.Reset(stall)
			if _, err := p.check.Write(buf[:n]); err != nil {
				return nil //nolint:nilerr // more bytes than signed; Finish says so
			}
			if _, err := p.file.Write(buf[:n]); err != nil {
				return err
			}
			p.f.progress.add(int64(n), true)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return causeOf(ctx, fmt.Errorf("the agent's answer broke off: %w", err))
		}
	}
}

// causeOf prefers the reason for which ctx ended to its consequence.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// plainURL tells whether url is a name within the agent's own cache.
func plainURL(url string) bool {
	if url == "" || len(url) > 1000 || url[0] == '/' {
		return false
	}
	for i := range len(url) {
		c := url[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '/' || c == '+'
		if !ok && (c != '.' || i > 0 && url[i-1] == '.') {
			return false
		}
	}
	return true
}
