package upstream

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors that steer. Wrapped ones carry the detail.
var (
	// ErrAbsent: the cache answered that it does not have it (404, 410, and 403 as Nix reads it).
	ErrAbsent = errors.New("upstream does not have it")
	// ErrUnreachable: the cache could not be asked; see [UnreachableError]. It says nothing about what it has.
	ErrUnreachable = errors.New("upstream cannot be asked")
	// ErrUnauthorized: it wants other credentials (401), or some at all; also an [UnreachableError].
	ErrUnauthorized = errors.New("it refuses the credentials (HTTP status 401)")
	// ErrCompression: the NAR is compressed in a way that is not supported; see [CompressionError].
	ErrCompression = errors.New("unsupported compression")
	// ErrChanged: the file behind a URL changed, or cannot be continued, while it was downloaded.
	ErrChanged = errors.New("download cannot be continued")
	// ErrForbidden: a URL or redirect that must not be followed, or a path that must not be forwarded.
	ErrForbidden = errors.New("refused")
)

var (
	errHeaderTimeout = errors.New("no answer in time")
	errIdle          = errors.New("no data in time")
	errTooSlow       = errors.New("data came too slowly")
	// errAborted: the decoder gave up, so the rest of the file is not wanted.
	errAborted = fmt.Errorf("no longer wanted: %w", context.Canceled)
)

// UnreachableError says why the cache could not be asked. It matches [ErrUnreachable].
type UnreachableError struct {
	URL     string    // what was asked, without credentials and query
	Cause   error     // dial, TLS, timeout, HTTP status, or why the breaker is open
	RetryAt time.Time // not before this time should the cache be asked again; zero: no opinion

	retryAfter time.Duration // as the server demanded, 0 if it did not
}

// Error implements error.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s: %v: %v", e.URL, ErrUnreachable, e.Cause)
}

// Is matches ErrUnreachable.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }

// StatusError is an HTTP status that is neither an answer nor an absence.
type StatusError struct{ Code int }

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("HTTP status %d", e.Code) }

// CompressionError names a compression that cannot be undone here. It matches [ErrCompression].
type CompressionError struct{ Compression string }

// Error implements error.
func (e *CompressionError) Error() string {
	return fmt.Sprintf("%v %.40q (supported: none, xz, zstd, bzip2, gzip, br)", ErrCompression, e.Compression)
}

// Is matches ErrCompression.
func (e *CompressionError) Is(target error) bool { return target == ErrCompression }

// TransferError says how far a NAR came before it broke for good. Its cause tells what happened:
// ErrUnreachable, ErrAbsent, ErrChanged, verify.ErrMalformed (the file does not decompress),
// verify.ErrTooLarge, io.ErrUnexpectedEOF (the file is too short), or the context's error.
type TransferError struct {
	URL   string // without credentials and query
	Wire  int64  // compressed bytes received
	Got   int64  // NAR bytes decoded, counted from the NAR's beginning
	Want  int64  // NarSize
	Cause error
}

// Error implements error.
func (e *TransferError) Error() string {
	return fmt.Sprintf("%s: broke at byte %d of %d (%d received): %v", e.URL, e.Got, e.Want, e.Wire, e.Cause)
}

// Unwrap returns the cause.
func (e *TransferError) Unwrap() error { return e.Cause }
