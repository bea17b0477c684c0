package verify

import (
	"io"
)

// Checker checks the bytes of one NAR, written in order, against a signed hash and size.
// It never accepts more bytes than were signed. Not safe for concurrent use.
type Checker struct {
	wantHash Hash
	wantSize int64
	sum      *ChainHash
	n        int64
	err      error
}

// NewChecker returns a Checker for a NAR of the signed hash and size (bytes).
func NewChecker(want Hash, size int64) *Checker {
	return &Checker{wantHash: want, wantSize: size, sum: NewChainHash()}
}

// Write implements io.Writer. More bytes than were signed give a *MismatchError, which sticks.
func (c *Checker) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if int64(len(p)) > c.wantSize-c.n {
		c.err = &MismatchError{WantHash: c.wantHash, WantSize: c.wantSize, GotSize: c.n + int64(len(p))}
		return 0, c.err
	}
	c.sum.Write(p)
	c.n += int64(len(p))
	return len(p), nil
}

// Written returns how many bytes were accepted.
func (c *Checker) Written() int64 { return c.n }

// Finish returns nil iff exactly the signed bytes were written, else a *MismatchError, which sticks:
// ask once all is written.
func (c *Checker) Finish() error {
	if c.err != nil {
		return c.err
	}
	got, _ := c.sum.Sum()
	if c.n != c.wantSize || got != c.wantHash {
		c.err = &MismatchError{WantHash: c.wantHash, GotHash: got, WantSize: c.wantSize, GotSize: c.n}
	}
	return c.err
}

// Chain returns the chain of the bytes; call it after Finish returned nil.
func (c *Checker) Chain() Chain {
	_, chain := c.sum.Sum()
	return chain
}

// Reader passes a NAR on while checking it. The last bytes are withheld until the whole was
// verified, so whoever reads to io.EOF has the signed bytes, and whoever was lied to never has all of
// them. Errors stick; a wrong NAR gives a *MismatchError, never io.EOF; the source's own errors pass
// through. Not safe for concurrent use.
type Reader struct {
	src   io.Reader
	check *Checker
	buf   []byte
	pass  int   // buf[pass:ready] may be passed on
	ready int   // buf[ready:have] is withheld
	have  int   // buf[:have] went through check
	err   error // what ends the stream once nothing is left to pass on
}

const (
	// tailLen is how many bytes a Reader withholds. One would do for a length check; some more keeps
	// a client from unpacking the last file of a wrong NAR.
	tailLen = 4 << 10
	// readLen is how many bytes a Reader asks for at once: large beside tailLen, whose bytes are
	// moved each time, small enough to hash out of the processor's cache.
	readLen = 64 << 10
	// maxEmptyReads is how often in a row a source may return neither bytes nor an error.
	maxEmptyReads = 100
)

// NewReader returns a Reader over src for a NAR of the signed hash and size (bytes).
func NewReader(src io.Reader, want Hash, size int64) *Reader {
	// A small NAR needs a small buffer; one byte more, to see that nothing follows.
	n := min(max(size, 0), tailLen+readLen-1) + 1
	return &Reader{src: src, check: NewChecker(want, size), buf: make([]byte, n)}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.pass == r.ready {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.buf[r.pass:r.ready])
	r.pass += n
	return n, nil
}

// fill reads once from the source. Called when nothing is left to pass on, so at most tailLen bytes
// are kept and there is room.
func (r *Reader) fill() {
	r.have = copy(r.buf, r.buf[r.ready:r.have])
	r.pass, r.ready = 0, 0
	var n int
	var err error
	for range maxEmptyReads {
		if n, err = r.src.Read(r.buf[r.have:]); n != 0 || err != nil {
			break
		}
	}
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	if _, werr := r.check.Write(r.buf[r.have : r.have+n]); werr != nil {
		r.err = werr
		return
	}
	r.have += n
	r.ready = max(0, r.have-tailLen)
	if err == io.EOF {
		if err = r.check.Finish(); err == nil {
			r.ready, err = r.have, io.EOF
		}
	}
	r.err = err
}
