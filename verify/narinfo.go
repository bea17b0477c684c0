package verify

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// MaxNarInfo bounds a narinfo, in bytes. Most have 0.5–30 KB; the largest known on cache.nixos.org, TeX
// Live's with 3,691 references, has 208 KB.
const MaxNarInfo = 1 << 20

// NarInfo is what a narinfo claims. Nothing in it is proven; [Keys.Verify] makes a [Verified] of it.
// URL, Compression, FileHash, FileSize, Deriver and System are not even covered by a signature.
type NarInfo struct {
	StorePath   StorePath
	URL         string
	Compression string // as written; "bzip2" when the field is missing
	FileHash    string // as written; never checked by Nix
	FileSize    int64  // bytes, 0 if unknown
	NarHash     Hash
	NarSize     int64    // bytes, > 0
	References  []string // base names, in the order written
	Deriver     string   // base name or ""
	System      string
	CA          string
	Sigs        []string // as written, "name:base64"
}

// ParseNarInfo reads a narinfo as leniently as Nix does, and no more: unknown fields are skipped, only
// StorePath, URL, NarHash, NarSize and the final newline are required, what Nix calls corrupt is
// malformed. Stricter than Nix on purpose: sizes fit int64, StorePath is in canonical form. More
// lenient: Compression and Sig may hold anything, for Nix versions differ there and both are judged
// later. The result keeps substrings of text alive. Errors wrap [ErrMalformed] or [ErrTooLarge].
func ParseNarInfo(text string) (*NarInfo, error) {
	if len(text) > MaxNarInfo {
		return nil, fmt.Errorf("narinfo of %d bytes: %w", len(text), ErrTooLarge)
	}
	n := &NarInfo{}
	havePath, haveHash := false, false
	for len(text) > 0 {
		name, value, rest, err := cutField(text)
		if err != nil {
			return nil, err
		}
		text = rest
		if err := n.set(name, value); err != nil {
			return nil, fmt.Errorf("narinfo: %s: %w", name, err)
		}
		havePath = havePath || name == "StorePath"
		haveHash = haveHash || name == "NarHash"
	}
	if !havePath || !haveHash || n.URL == "" || n.NarSize == 0 {
		return nil, fmt.Errorf("narinfo: %w: StorePath, URL, NarHash and NarSize are required", ErrMalformed)
	}
	if n.Compression == "" {
		n.Compression = "bzip2"
	}
	return n, nil
}

// cutField splits off the first field exactly where Nix does: the name ends at the first colon, even
// on a later line; one character after it is skipped, even a newline; the value ends at the next
// newline. A reader that split at newlines first would see other fields than Nix in the same text.
func cutField(text string) (name, value, rest string, err error) {
	colon := strings.IndexByte(text, ':')
	if colon < 0 {
		return "", "", "", fmt.Errorf("narinfo line %.80q: %w: no colon", text, ErrMalformed)
	}
	start := colon + 2
	length := -1
	if start <= len(text) {
		length = strings.IndexByte(text[start:], '\n')
	}
	if length < 0 {
		return "", "", "", fmt.Errorf("narinfo: %w: no newline at the end", ErrMalformed)
	}
	return text[:colon], text[start : start+length], text[start+length+1:], nil
}

// ReadNarInfo reads at most [MaxNarInfo] bytes from r and parses them.
func ReadNarInfo(r io.Reader) (*NarInfo, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxNarInfo+1))
	if err != nil {
		return nil, fmt.Errorf("read narinfo: %w", err)
	}
	return ParseNarInfo(string(b))
}

func (n *NarInfo) set(name, value string) (err error) {
	switch name {
	case "StorePath":
		n.StorePath, err = ParseStorePath(value)
	case "URL":
		n.URL = value
	case "Compression":
		n.Compression = value
	case "FileHash":
		n.FileHash, err = value, checkHash(value)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		n.NarHash, err = ParseHash(value)
	case "NarSize":
		n.NarSize, err = parseSize(value)
	case "References":
		if len(n.References) > 0 {
			return fmt.Errorf("%w: given twice", ErrMalformed)
		}
		n.References, err = parseReferences(value)
	case "Deriver":
		if value != "unknown-deriver" {
			n.Deriver, err = value, checkBaseName(value)
		}
	case "System":
		n.System = value
	case "Sig":
		n.Sigs = append(n.Sigs, value)
	case "CA":
		if n.CA != "" {
			return fmt.Errorf("%w: given twice", ErrMalformed)
		}
		n.CA, err = value, checkCA(value)
	}
	return err
}

// parseSize reads decimal digits, with a plus before them if need be.
func parseSize(s string) (int64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%.30q: %w: not a size", s, ErrMalformed)
	}
	return int64(v), nil
}

// checkCA accepts what Nix does: nothing, or text:HASH, fixed:HASH, fixed:r:HASH, fixed:git:HASH.
// A content address proves nothing here, but Nix refuses a narinfo whose CA it cannot read.
func checkCA(s string) error {
	if s == "" {
		return nil
	}
	rest, ok := strings.CutPrefix(s, "text:")
	if !ok {
		if rest, ok = strings.CutPrefix(s, "fixed:"); !ok {
			return fmt.Errorf("content address %.80q: %w", s, ErrMalformed)
		}
		if r, found := strings.CutPrefix(rest, "r:"); found {
			rest = r
		} else if r, found := strings.CutPrefix(rest, "git:"); found {
			rest = r
		}
	}
	if !strings.Contains(rest, ":") { // SRI, which a content address may not use
		return fmt.Errorf("content address %.80q: %w", s, ErrMalformed)
	}
	return checkHash(rest)
}

func parseReferences(s string) ([]string, error) {
	var refs []string
	for s != "" {
		var ref string
		ref, s, _ = strings.Cut(s, " ")
		if ref == "" {
			continue
		}
		if err := checkBaseName(ref); err != nil {
			return nil, err
		}
		if refs == nil { // by bytes, not by spaces: a megabyte of spaces must not cost sixteen
			refs = make([]string, 0, 1+(len(s)+1)/(len(ref)+1))
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// Fingerprint is the text that a binary cache signs:
// 1;<store path>;<NarHash>;<NarSize>;<references, full paths, sorted, comma between>.
func (n *NarInfo) Fingerprint() string {
	refs := n.References
	if !slices.IsSorted(refs) || hasRepeat(refs) {
		refs = slices.Clone(refs)
		slices.Sort(refs)
		refs = slices.Compact(refs)
	}
	dir := n.StorePath.Dir()
	size := len(n.StorePath.full) + 100
	for _, r := range refs {
		size += len(dir) + len(r) + 2
	}
	b := make([]byte, 0, size)
	b = append(b, "1;"...)
	b = append(b, n.StorePath.full...)
	b = append(b, ';')
	b = append(b, n.NarHash.String()...)
	b = append(b, ';')
	b = strconv.AppendInt(b, n.NarSize, 10)
	b = append(b, ';')
	for i, r := range refs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, dir...)
		b = append(b, '/')
		b = append(b, r...)
	}
	return string(b)
}

func hasRepeat(sorted []string) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return true
		}
	}
	return false
}

// AppendText appends the narinfo in Nix's field order. Parsing the result gives the same NarInfo.
// It implements encoding.TextAppender and never fails.
func (n *NarInfo) AppendText(b []byte) ([]byte, error) {
	field := func(name, value string) {
		b = append(append(append(append(b, name...), ": "...), value...), '\n')
	}
	number := func(name string, v int64) {
		b = append(append(append(b, name...), ": "...), strconv.FormatInt(v, 10)...)
		b = append(b, '\n')
	}
	field("StorePath", n.StorePath.full)
	field("URL", n.URL)
	field("Compression", n.Compression)
	if n.FileHash != "" {
		field("FileHash", n.FileHash)
	}
	if n.FileSize > 0 {
		number("FileSize", n.FileSize)
	}
	field("NarHash", n.NarHash.String())
	number("NarSize", n.NarSize)
	b = append(b, "References: "...)
	for i, r := range n.References {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, r...)
	}
	b = append(b, '\n')
	if n.Deriver != "" {
		field("Deriver", n.Deriver)
	}
	if n.System != "" {
		field("System", n.System)
	}
	for _, s := range n.Sigs {
		field("Sig", s)
	}
	if n.CA != "" {
		field("CA", n.CA)
	}
	return b, nil
}

// String returns the narinfo's text.
func (n *NarInfo) String() string {
	size := 512 // names of fields, hashes, sizes
	size += len(n.StorePath.full) + len(n.URL) + len(n.FileHash) + len(n.Deriver) + len(n.CA)
	for _, s := range n.References {
		size += len(s) + 1
	}
	for _, s := range n.Sigs {
		size += len(s) + 6
	}
	b, _ := n.AppendText(make([]byte, 0, size))
	return string(b)
}
