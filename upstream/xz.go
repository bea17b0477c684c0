package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xi2/xz"
)

const (
	// xzDict bounds a pure-Go decoder's dictionary, in bytes: what xz -9 uses.
	xzDict = 64 << 20
	// xzMemory bounds the xz program's memory, in bytes: that dictionary and the decoder's state.
	xzMemory = xzDict + 8<<20
	// pipeSize is asked for the pipes to and from the program, in bytes: fewer switches between it and
	// us. The kernel allows it to anybody, up to 64 MiB per user; beyond that pipes stay at 64 KiB.
	pipeSize = 1 << 20
	// xzNap is how long what the program prints may wait to be read. It prints 8 KiB at a time; woken for each, the
	// reader, the spool and Nix's connection took processor time from it, on its own processor even. It fills
	// such a pipe in 25 ms.
	xzNap = 2 * time.Millisecond
	// xzNaps bounds how long a program that reads nothing is waited for before it is written to.
	xzNaps = 16
	// xzNapFrom, bytes: short NARs are not held up.
	xzNapFrom = 2 << 20
	// maxStderr is how much of the program's complaints is kept, in bytes.
	maxStderr = 512
)

// xzChoice is how xz files are decoded.
type xzChoice struct {
	mu   sync.Mutex // guards why
	path string     // of the program, "" for pure Go
	why  string     // why not (or not lately) the program
}

// String is for Status.
func (x *xzChoice) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why != "" {
		return "pure Go: " + x.why
	}
	return "xz program " + x.path
}

// xzReader decodes src with the xz program, or in Go where there is none or it does not start.
func (c *Client) xzReader(ctx context.Context, src *body) (io.ReadCloser, error) {
	if c.xz.path != "" {
		child, err := startXZ(ctx, c.xz.path, src)
		why := ""
		if err != nil {
			why = fmt.Sprintf("%s did not start: %v", c.xz.path, bareError(err))
			c.log.Warn("decoding xz in Go, which is slower", "reason", why)
		}
		c.xz.mu.Lock()
		c.xz.why = why
		c.xz.mu.Unlock()
		if err == nil {
			return child, nil
		}
	}
	return io.NopCloser(&goXZ{src: src}), nil
}

// goXZ makes its decoder in the first Read, since that reads the header.
type goXZ struct {
	src io.Reader
	r   *xz.Reader
}

func (g *goXZ) Read(p []byte) (n int, err error) {
	if g.r == nil {
		if g.r, err = xz.NewReader(g.src, xzDict); err != nil {
			return 0, err
		}
	}
	n, err = g.r.Read(p)
	if errors.Is(err, xz.ErrBuf) { // input ended inside a block
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// xzChild is a running xz program: a goroutine feeds it from src, Read takes what it prints.
type xzChild struct {
	cmd     *exec.Cmd
	out     *os.File
	stderr  limitedBuffer
	fed     chan error // what ended the feeding, sent once
	stop    context.CancelFunc
	src     *body
	roomy   bool  // out has pipeSize
	got     int64 // bytes read
	emptied bool  // by the last Read
	over    bool  // it was waited for
	err     error // what Read ends with
}

func startXZ(ctx context.Context, path string, src *body) (*xzChild, error) {
	ctx, stop := context.WithCancel(ctx)
	x := &xzChild{stop: stop, src: src, fed: make(chan error, 1)}
	inR, inW, err := pipe()
	if err != nil {
		stop()
		return nil, err
	}
	outR, outW, err := pipe()
	if err != nil {
		stop()
		inR.Close()
		inW.Close()
		return nil, err
	}
	roomy := enlarge(inW)
	x.out, x.roomy = outR, enlarge(outW)
	x.cmd = exec.CommandContext(ctx, path, "-d", "-c", "-q", "-T1", "--format=xz", "--memlimit-decompress="+strconv.Itoa(xzMemory))
	x.cmd.Env = []string{"LC_ALL=C"} // XZ_OPT and XZ_DEFAULTS would change what it does
	x.cmd.Dir = "/"
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = inR, outW, &x.stderr
	err = x.cmd.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		stop()
		inW.Close()
		outR.Close()
		return nil, err
	}
	go func() { x.fed <- feed(inW, src, roomy) }()
	return x, nil
}

// feed copies src to the program and closes the pipe, which has pipeSize if it is roomy. That the program
// stopped reading is its business.
func feed(w *os.File, src io.Reader, roomy bool) error {
	defer w.Close()
	buf := make([]byte, inBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			for i := 0; roomy && i < xzNaps && unread(w) > pipeSize*3/4; i++ { // full, it would have us woken for each 8 KiB
				time.Sleep(xzNap)
			}
			if _, werr := w.Write(buf[:n]); werr != nil {
				return nil
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

// Read implements io.Reader.
func (x *xzChild) Read(p []byte) (int, error) {
	if x.err != nil {
		return 0, x.err
	}
	if x.emptied && x.roomy && x.got >= xzNapFrom {
		time.Sleep(xzNap)
	}
	n, err := x.out.Read(p)
	x.got, x.emptied = x.got+int64(n), n < len(p)
	if err == nil || n > 0 {
		return n, nil
	}
	x.err = x.wait()
	return 0, x.err
}

// wait reaps the program after its output ended, then ends the feeding, and says how it went.
func (x *xzChild) wait() error {
	x.over = true
	exit := x.cmd.Wait()
	if exit != nil {
		x.src.abort(errAborted)
	}
	fed := <-x.fed
	x.stop()
	switch {
	case fed != nil && !errors.Is(fed, errAborted):
		return fed
	case exit == nil:
		return io.EOF
	}
	text := strings.TrimSpace(x.stderr.String())
	if strings.Contains(text, "Unexpected end of input") {
		return fmt.Errorf("xz: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("xz: %v: %q", exit, text)
}

// Close kills and reaps the program. The download's context must have ended, or its feeder might wait.
func (x *xzChild) Close() error {
	if !x.over {
		x.stop()
		x.wait()
	}
	return x.out.Close()
}

// limitedBuffer keeps the first bytes written to it.
type limitedBuffer struct{ b bytes.Buffer }

// Write implements io.Writer.
func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxStderr - l.b.Len(); room > 0 {
		l.b.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// String returns what was kept.
func (l *limitedBuffer) String() string { return l.b.String() }
