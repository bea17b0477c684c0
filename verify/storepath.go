package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"strings"

	"github.com/nix-community/go-nix/pkg/nixbase32"
)

// Lengths of the parts of a store path, in characters. Source: Nix, src/libstore/path.cc.
const (
	StoreHashLen = 32  // base32 characters of a store hash
	maxNameLen   = 211 // longest name after the hash and its dash
	maxPathLen   = 1024
)

// DefaultStoreDir is where every public binary cache's paths live.
const DefaultStoreDir = "/nix/store"

// StoreHash is the 160-bit hash that begins a store path's base name. It is comparable and usable as
// a map key; String gives the 32 base32 characters.
type StoreHash [20]byte

// ParseStoreHash reads exactly 32 characters of Nix base32.
func ParseStoreHash(s string) (StoreHash, error) {
	var h StoreHash
	if len(s) != StoreHashLen {
		return h, fmt.Errorf("store hash %.40q: %w: want %d base32 characters", s, ErrMalformed, StoreHashLen)
	}
	if err := decodeBase32(h[:], s); err != nil {
		return StoreHash{}, fmt.Errorf("store hash %.40q: %w", s, err)
	}
	return h, nil
}

// String returns the 32 base32 characters that begin the path's base name.
func (h StoreHash) String() string { return nixbase32.EncodeToString(h[:]) }

// PathDigest is SHA-256 of a store hash's 32 characters. It names a path to peers without revealing
// the path to those who do not already know it.
type PathDigest [sha256.Size]byte

// Digest returns the name under which peers are asked about h.
func (h StoreHash) Digest() PathDigest { return sha256.Sum256([]byte(h.String())) }

// ParsePathDigest reads exactly 52 characters of Nix base32.
func ParsePathDigest(s string) (PathDigest, error) {
	h, err := parseBase32Hash(s)
	return PathDigest(h), err
}

// String returns 52 characters of Nix base32.
func (d PathDigest) String() string { return nixbase32.EncodeToString(d[:]) }

// Key is the digest's first 64 bits, the form in which have-sets carry it.
func (d PathDigest) Key() uint64 { return binary.BigEndian.Uint64(d[:8]) }

// StorePath is a syntactically valid absolute store path: a store directory, a store hash, a name.
// The zero value is invalid.
type StorePath struct {
	full    string
	dirLen  int // bytes of full before the slash that precedes the hash
	hashVal StoreHash
}

// ParseStorePath reads an absolute path such as /nix/store/<hash>-<name>, in canonical form (no
// doubled slash, no dots); nothing may follow the name.
func ParseStorePath(s string) (StorePath, error) {
	if len(s) > maxPathLen {
		return StorePath{}, fmt.Errorf("store path of %d bytes: %w", len(s), ErrMalformed)
	}
	i := strings.LastIndexByte(s, '/')
	if i <= 0 || s[0] != '/' {
		return StorePath{}, fmt.Errorf("store path %.80q: %w: not absolute", s, ErrMalformed)
	}
	if path.Clean(s) != s || !plainDir(s[:i]) {
		return StorePath{}, fmt.Errorf("store path %.80q: %w: not in canonical form", s, ErrMalformed)
	}
	h, err := parseBaseName(s[i+1:])
	if err != nil {
		return StorePath{}, err
	}
	return StorePath{full: s, dirLen: i, hashVal: h}, nil
}

// plainDir tells whether a store directory can stand in a narinfo and in a fingerprint without being
// taken for something else there.
func plainDir(dir string) bool {
	for i := range len(dir) {
		if c := dir[i]; c <= ' ' || c == 0x7f || c == ',' || c == ';' {
			return false
		}
	}
	return true
}

// String returns the whole path.
func (p StorePath) String() string { return p.full }

// Dir returns the store directory, such as /nix/store.
func (p StorePath) Dir() string { return p.full[:p.dirLen] }

// Base returns <hash>-<name>.
func (p StorePath) Base() string {
	if p.full == "" {
		return ""
	}
	return p.full[p.dirLen+1:]
}

// Name returns what follows the hash and its dash.
func (p StorePath) Name() string {
	if p.full == "" {
		return ""
	}
	return p.full[p.dirLen+1+StoreHashLen+1:]
}

// Hash returns the path's store hash.
func (p StorePath) Hash() StoreHash { return p.hashVal }

// parseBaseName checks <hash>-<name> and returns the hash.
func parseBaseName(s string) (StoreHash, error) {
	if err := checkBaseName(s); err != nil {
		return StoreHash{}, err
	}
	return ParseStoreHash(s[:StoreHashLen])
}

// checkBaseName checks <hash>-<name> without decoding the hash, for a narinfo may have thousands.
func checkBaseName(s string) error {
	if len(s) < StoreHashLen+2 || s[StoreHashLen] != '-' {
		return fmt.Errorf("store path name %.80q: %w", s, ErrMalformed)
	}
	for i := range StoreHashLen {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'z' && c != 'e' && c != 'o' && c != 't' && c != 'u':
		default:
			return fmt.Errorf("store path name %.80q: %w: hash character %q", s, ErrMalformed, c)
		}
	}
	return checkName(s[StoreHashLen+1:])
}

func checkName(name string) error {
	if len(name) > maxNameLen {
		return fmt.Errorf("store path name of %d characters: %w: at most %d", len(name), ErrMalformed, maxNameLen)
	}
	if first, _, _ := strings.Cut(name, "-"); first == "." || first == ".." {
		return fmt.Errorf("store path name %q: %w", name, ErrMalformed)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '.', c == '_', c == '+', c == '?', c == '=':
		default:
			return fmt.Errorf("store path name %.80q: %w: character %q", name, ErrMalformed, c)
		}
	}
	return nil
}
