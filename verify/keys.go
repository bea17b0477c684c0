package verify

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

// Scope says with whom a path may be shared. A greater scope includes the smaller ones.
type Scope uint8

const (
	// ScopeNone: stays on this machine.
	ScopeNone Scope = iota
	// ScopeGroup: only for peers that proved knowledge of the group secret.
	ScopeGroup
	// ScopePublic: for anybody.
	ScopePublic
)

// Keys is an immutable set of public keys that may sign narinfos. Several keys may share a name.
// The zero value trusts nobody. Safe for concurrent use.
type Keys struct{ byName map[string][]trustedKey }

type trustedKey struct {
	key   ed25519.PublicKey
	scope Scope
}

// NewKeys makes a set from keys in Nix's notation, "name:base64". Paths signed by one of public may be
// shared with anybody, those signed by one of private only with the group. A key in both is public:
// what a public cache signed stays public if a private mirror of it is configured too.
func NewKeys(public, private []string) (*Keys, error) {
	k := &Keys{byName: make(map[string][]trustedKey)}
	for i, s := range slices.Concat(public, private) {
		name, key, err := ParsePublicKey(s)
		if err != nil {
			return nil, err
		}
		scope := ScopePublic
		if i >= len(public) {
			scope = ScopeGroup
		}
		k.byName[name] = append(k.byName[name], trustedKey{key, scope})
	}
	return k, nil
}

// ParsePublicKey reads a public key in Nix's notation, "name:base64 of 32 bytes".
func ParsePublicKey(s string) (name string, key ed25519.PublicKey, err error) {
	name, b, err := parseNamed(s, ed25519.PublicKeySize)
	if err != nil {
		return "", nil, fmt.Errorf("public key %.80q: %w (want name:base64, as in nix.conf's trusted-public-keys)", s, err)
	}
	return name, b, nil
}

// Len returns how many keys there are.
func (k *Keys) Len() int {
	n := 0
	for _, l := range k.byName {
		n += len(l)
	}
	return n
}

// Digest tells sets of keys apart: two sets decide alike if and only if their digests are equal.
func (k *Keys) Digest() [sha256.Size]byte {
	var lines []string
	for name, list := range k.byName {
		for _, t := range list {
			lines = append(lines, fmt.Sprintf("%q %x %d\n", name, t.key, t.scope))
		}
	}
	slices.Sort(lines)
	return sha256.Sum256([]byte(strings.Join(slices.Compact(lines), "")))
}

// ScopeOf tells how far the path that n describes may travel: the greatest scope among the configured
// keys with a good signature over n's fingerprint, ScopeNone if there is none. n may be incomplete
// (no URL), as one read from a store's database is.
func (k *Keys) ScopeOf(n *NarInfo) Scope {
	scope, _ := k.check(n, ScopePublic)
	return scope
}

// Verify turns a claim into a fact if a configured key signed its fingerprint; otherwise the error
// wraps [ErrUntrusted]. The result keeps only good signatures: junk, foreign and malformed ones are
// dropped, since Nix aborts on some of them. n is not changed.
func (k *Keys) Verify(n *NarInfo) (*Verified, error) {
	scope, good := k.check(n, ScopeNone)
	if scope == ScopeNone {
		return nil, fmt.Errorf("%s: %w", n.StorePath.Base(), ErrUntrusted)
	}
	c := *n
	c.References = slices.Clone(n.References) // a fact must not change with its claim
	c.Sigs = nil
	v := &Verified{info: c, scope: scope, sigs: good}
	return v, nil
}

type goodSig struct {
	text  string
	scope Scope
}

// maxChecks bounds the Ed25519 verifications one narinfo may ask for, each about 70 µs. Honest ones
// need one for each key that signed. Past it signatures count as absent, also good ones: whoever put
// that much junk before them costs us one retry elsewhere, not more time.
const maxChecks = 32

// check verifies signatures until one reaches the scope enough (ScopeNone: all of them).
func (k *Keys) check(n *NarInfo, enough Scope) (Scope, []goodSig) {
	if n.StorePath.full == "" || n.NarSize <= 0 {
		return ScopeNone, nil // Nix never signs such a thing
	}
	var best Scope
	var good []goodSig
	var fingerprint []byte
	tried := 0
	for _, text := range n.Sigs {
		name, _, _ := strings.Cut(text, ":")
		keys := k.byName[name]
		if len(keys) == 0 || tried >= maxChecks || slices.ContainsFunc(good, func(g goodSig) bool { return g.text == text }) {
			continue
		}
		_, sig, err := parseNamed(text, ed25519.SignatureSize)
		if err != nil {
			continue
		}
		if fingerprint == nil {
			fingerprint = []byte(n.Fingerprint())
		}
		s := ScopeNone
		for _, t := range keys {
			if t.scope <= s {
				continue
			}
			tried++
			if ed25519.Verify(t.key, fingerprint, sig) {
				s = t.scope
			}
		}
		if s == ScopeNone {
			continue
		}
		good = append(good, goodSig{text, s})
		best = max(best, s)
		if enough != ScopeNone && best >= enough {
			break
		}
	}
	return best, good
}

// parseNamed reads "name:base64 of size bytes". Only the one canonical spelling is right: Nix reads
// others too, but then one signature would have many texts, and what we pass on must be safe for every
// version of Nix.
func parseNamed(s string, size int) (string, []byte, error) {
	name, data, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return "", nil, fmt.Errorf("%w: no name", ErrMalformed)
	}
	if len(data) > base64.StdEncoding.EncodedLen(size) {
		return "", nil, fmt.Errorf("%w: too long", ErrMalformed)
	}
	b, err := base64.StdEncoding.DecodeString(data)
	if err != nil || len(b) != size || base64.StdEncoding.EncodeToString(b) != data { // Go skips \r, Nix does not
		return "", nil, fmt.Errorf("%w: want %d bytes of base64", ErrMalformed, size)
	}
	return name, b, nil
}

// Verified is a narinfo whose fingerprint a configured key signed. Only [Keys.Verify] makes one.
// Immutable and safe for concurrent use; callers must not change the slices it returns.
type Verified struct {
	info  NarInfo // Sigs empty; see sigs
	scope Scope
	sigs  []goodSig
}

// Path returns the signed store path.
func (v *Verified) Path() StorePath { return v.info.StorePath }

// NarHash returns the signed SHA-256 of the NAR.
func (v *Verified) NarHash() Hash { return v.info.NarHash }

// NarSize returns the signed size of the NAR in bytes.
func (v *Verified) NarSize() int64 { return v.info.NarSize }

// References returns the signed references, base names. Not to be changed.
func (v *Verified) References() []string { return v.info.References }

// Scope tells how far the path may travel.
func (v *Verified) Scope() Scope { return v.scope }

// Source returns the unsigned fields as their sender wrote them: where the sender keeps the NAR.
// They mean something only towards that sender.
func (v *Verified) Source() (url, compression string, fileSize int64) {
	return v.info.URL, v.info.Compression, v.info.FileSize
}

// For returns a new narinfo for a reader entitled to scope (ScopeNone: this machine itself): the
// signed fields, the given NAR location, and only the signatures of keys that this reader may know
// of. Only this machine's own narinfos keep the unsigned Deriver, System and CA; those of a claim that
// came from a peer are the peer's invention (Nix refuses a path whose CA is wrong), so ask for
// ScopeGroup, which has all good signatures, when such a claim is passed on to this machine's Nix.
// A reader not entitled to the path gets nil.
func (v *Verified) For(reader Scope, url, compression string) *NarInfo {
	if reader > v.scope {
		return nil
	}
	n := v.info
	n.References = slices.Clone(v.info.References)
	n.URL, n.Compression = url, compression
	n.FileHash, n.FileSize = "", 0
	if compression == "none" {
		n.FileHash, n.FileSize = n.NarHash.String(), n.NarSize
	}
	if reader != ScopeNone {
		n.Deriver, n.System, n.CA = "", "", ""
	}
	for _, s := range v.sigs {
		if s.scope >= reader {
			n.Sigs = append(n.Sigs, s.text)
		}
	}
	return &n
}
