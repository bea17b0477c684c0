package verify

import (
	"errors"
	"fmt"
)

// Errors that steer. Wrapped ones carry the detail.
var (
	// ErrMalformed: the input is not of its format.
	ErrMalformed = errors.New("malformed")
	// ErrUntrusted: no configured key signed it.
	ErrUntrusted = errors.New("not signed by a configured key")
	// ErrTooLarge: the input exceeds its bound.
	ErrTooLarge = errors.New("too large")
)

// MismatchError says that NAR bytes are not those that were signed.
type MismatchError struct {
	WantHash, GotHash Hash  // GotHash is zero when the size was already wrong
	WantSize, GotSize int64 // bytes; GotSize is what had been seen when it was known to be wrong
}

// Error implements error.
func (e *MismatchError) Error() string {
	if e.WantSize != e.GotSize {
		return fmt.Sprintf("NAR of %d bytes where %d were signed", e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("NAR hash %v where %v was signed", e.GotHash, e.WantHash)
}
