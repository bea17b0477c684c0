package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/nix-community/go-nix/pkg/nixbase32"
)

// Hash is a SHA-256 sum, the only kind that a NarHash may have here.
type Hash [sha256.Size]byte

const base32HashLen = 52 // characters of a SHA-256 in Nix base32

// ParseHash reads a SHA-256 as Nix writes it: "sha256:" and base32, base16 or base64, or SRI
// ("sha256-" and base64).
func ParseHash(s string) (Hash, error) {
	var h Hash
	if !strings.HasPrefix(s, "sha256:") && !strings.HasPrefix(s, "sha256-") {
		return h, fmt.Errorf("hash %.80q: %w: not sha256", s, ErrMalformed)
	}
	err := decodeHash(h[:], s[len("sha256:"):], s[len("sha256")] == '-')
	if err != nil {
		return Hash{}, fmt.Errorf("hash %.80q: %w", s, err)
	}
	return h, nil
}

// checkHash accepts a hash of any algorithm that Nix knows, in any of its notations.
func checkHash(s string) error {
	i := strings.IndexByte(s, ':')
	if i < 0 {
		i = strings.IndexByte(s, '-')
	}
	if i < 0 {
		return fmt.Errorf("hash %.80q: %w: no algorithm", s, ErrMalformed)
	}
	size := 0 // bytes
	switch s[:i] {
	case "md5":
		size = 16
	case "sha1":
		size = 20
	case "sha256", "blake3":
		size = 32
	case "sha512":
		size = 64
	default:
		return fmt.Errorf("hash %.80q: %w: unknown algorithm", s, ErrMalformed)
	}
	var b [64]byte
	if err := decodeHash(b[:size], s[i+1:], s[i] == '-'); err != nil {
		return fmt.Errorf("hash %.80q: %w", s, err)
	}
	return nil
}

// decodeHash fills dst. SRI means base64; otherwise the length tells the notation, as in Nix.
func decodeHash(dst []byte, text string, sri bool) error {
	var b []byte
	var err error
	switch {
	case len(text) == nixbase32.EncodedLen(len(dst)) && !sri:
		return decodeBase32(dst, text)
	case sri, len(text) == base64.StdEncoding.EncodedLen(len(dst)):
		b, err = decodeBase64(text)
	case len(text) == hex.EncodedLen(len(dst)):
		b, err = hex.DecodeString(text)
	default:
		return fmt.Errorf("%w: %d characters", ErrMalformed, len(text))
	}
	if err != nil || len(b) != len(dst) {
		return fmt.Errorf("%w: want %d bytes", ErrMalformed, len(dst))
	}
	copy(dst, b)
	return nil
}

// decodeBase64 reads base64 as Nix does: all after the first = is padding, spare bits may be anything.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // which Go would skip
		return nil, ErrMalformed
	}
	s, _, _ = strings.Cut(s, "=")
	return base64.RawStdEncoding.DecodeString(s)
}

// ParseHashBase32 reads 52 characters of Nix base32 without a prefix.
func ParseHashBase32(s string) (Hash, error) { return parseBase32Hash(s) }

func parseBase32Hash(s string) (Hash, error) {
	var h Hash
	if len(s) != base32HashLen {
		return h, fmt.Errorf("hash %.80q: %w: want %d base32 characters", s, ErrMalformed, base32HashLen)
	}
	if err := decodeBase32(h[:], s); err != nil {
		return Hash{}, fmt.Errorf("hash %.80q: %w", s, err)
	}
	return h, nil
}

// decodeBase32 fills dst, at most 64 bytes, from exactly as many characters as it needs. A narinfo may
// have thousands of references: it allocates nothing.
func decodeBase32(dst []byte, s string) error {
	var text [103]byte // of a SHA-512
	n := copy(text[:], s)
	if n != len(s) || n != nixbase32.EncodedLen(len(dst)) {
		return fmt.Errorf("%w: %d base32 characters", ErrMalformed, len(s))
	}
	if _, err := nixbase32.Decode(dst, text[:n]); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return nil
}

// Base32 returns 52 characters of Nix base32, without a prefix.
func (h Hash) Base32() string { return nixbase32.EncodeToString(h[:]) }

// String returns the notation of narinfos and fingerprints: "sha256:" and base32.
func (h Hash) String() string { return "sha256:" + h.Base32() }
