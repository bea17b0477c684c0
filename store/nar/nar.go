// Package nar writes Nix archives (NARs) of file trees, byte-identical to `nix-store --dump`, whole or
// in ranges, in process and without temporary copies.
//
// [Open] walks a tree once and learns the archive's exact size; [NAR.WriteRange] then streams any part
// of it. It must never follow a symbolic link, map a file into memory, or paper over a file that
// changed since the walk: output is right or it ends with an error.
//
// Format: Nix manual, "Nix Archive (NAR) format"; E. Dolstra's thesis, figure 5.2; Nix source,
// src/libutil/archive.cc (dump).
package nar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// Errors that steer. Wrapped ones carry the detail; a vanished file is also fs.ErrNotExist.
var (
	// ErrChanged: a file is no longer as it was when the NAR was opened.
	ErrChanged = errors.New("file changed since the NAR was opened")
	// ErrUnsupported: the tree holds something that no NAR can (fifo, socket, device), or exceeds a bound.
	ErrUnsupported = errors.New("not representable as a NAR")
	// ErrRange: the range does not lie within the NAR.
	ErrRange = errors.New("range outside the NAR")
)

const (
	// maxDepth bounds nested directories; one descriptor is open per level. The deepest real store
	// paths (nested node_modules) have about 60.
	maxDepth = 512
	// maxEntries bounds files, directories and links of one tree: about 60 bytes of memory each. The
	// largest real paths (texlive, source trees) have some 300,000.
	maxEntries = 4 << 20
)

type kind uint8

const (
	kindDirectory kind = iota
	kindRegular
	kindExecutable
	kindSymlink
)

// entry is one file, directory or link, in the order in which the archive names them. What follows
// its own text up to the next entry is padding and closing parentheses, so an entry's place is known
// without keeping any text.
type entry struct {
	start  int64  // offset of its text in the NAR
	size   int64  // bytes: contents of a file, target of a link
	parent int32  // index of its directory, -1 for the root
	name   uint32 // offset of name, NUL, then link target, in NAR.names
	closes uint32 // closing parentheses after it
	length uint16 // of its name
	kind   kind
}

// NAR is the archive of one tree as it was when opened. It holds no descriptor and needs no closing.
// Immutable; safe for concurrent use.
type NAR struct {
	root    []byte // a path, ending in NUL as the kernel wants it
	id      identity
	entries []entry
	names   []byte
	size    int64
}

// Open walks the tree at root (a file, a directory or a symbolic link) and returns its archive,
// having read no file's contents. It costs about 60 bytes of memory per entry.
func Open(ctx context.Context, root string) (*NAR, error) {
	n := &NAR{root: append([]byte(root), 0)}
	if err := n.walk(ctx); err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	if err := n.layOut(); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	n.entries, n.names = slices.Clip(n.entries), slices.Clip(n.names)
	return n, nil
}

// Size returns the archive's exact size in bytes.
func (n *NAR) Size() int64 { return n.size }

// Entries returns how many files, directories and links there are.
func (n *NAR) Entries() int { return len(n.entries) }

// Same tells whether the root is still the one that was walked. What is below it is looked at as it is
// written.
func (n *NAR) Same() bool {
	id, err := identify(unix.AT_FDCWD, n.path())
	return err == nil && id == n.id
}

// path is where the tree is.
func (n *NAR) path() string { return string(n.root[:len(n.root)-1]) }

// name is that of an entry.
func (n *NAR) name(e *entry) []byte { return n.names[e.name:][:e.length] }

// target is that of a symbolic link.
func (n *NAR) target(e *entry) []byte { return n.names[int(e.name)+int(e.length)+1:][:e.size] }

const (
	magic    = "nix-archive-1"
	wordSize = 8             // lengths are 64-bit little-endian, strings padded to this
	closeLen = 2 * wordSize  // ")" as a string
	maxNAR   = math.MaxInt64 // bytes
)

// layOut assigns offsets: entries are in archive order, so one pass does.
func (n *NAR) layOut() error {
	var at int64
	var head []byte
	for i := range n.entries {
		e := &n.entries[i]
		e.start = at
		head = n.appendHead(head[:0], i)
		rest := int64(len(head)) + int64(e.closes)*closeLen
		if e.size > maxNAR-wordSize-rest-at {
			return fmt.Errorf("%w: more than 2^63 bytes", ErrUnsupported)
		}
		at += rest + padded(e.contents())
	}
	n.size = at
	return nil
}

// contents returns how many bytes of file contents follow the entry's text.
func (e *entry) contents() int64 {
	if e.kind == kindRegular || e.kind == kindExecutable {
		return e.size
	}
	return 0
}

func padded(n int64) int64 { return (n + wordSize - 1) &^ (wordSize - 1) }

// The strings between names and contents, as they stand in the archive.
var (
	textMagic      = archived(magic)
	textEntry      = archived("entry", "(", "name")
	textNode       = archived("node")
	textDirectory  = archived("(", "type", "directory")
	textSymlink    = archived("(", "type", "symlink", "target")
	textExecutable = archived("(", "type", "regular", "executable", "", "contents")
	textRegular    = archived("(", "type", "regular", "contents")
	textClose      = archived(")")
)

func archived(list ...string) (text string) {
	for _, s := range list {
		text += string(appendString(nil, s))
	}
	return text
}

// maxHead returns a bound for what appendHead appends, bytes.
func (e *entry) maxHead() int64 {
	n := int64(len(textMagic) + len(textEntry) + len(textNode) + len(textExecutable) + 4*wordSize + int(e.length))
	if e.kind == kindSymlink {
		n += e.size
	}
	return n
}

// appendHead appends the text of entry i up to its contents.
func (n *NAR) appendHead(b []byte, i int) []byte {
	e := &n.entries[i]
	if e.parent < 0 {
		b = append(b, textMagic...)
	} else {
		b = append(b, textEntry...)
		b = appendString(b, n.name(e))
		b = append(b, textNode...)
	}
	switch e.kind {
	case kindDirectory:
		b = append(b, textDirectory...)
	case kindSymlink:
		b = append(b, textSymlink...)
		b = appendString(b, n.target(e))
	case kindExecutable:
		b = append(b, textExecutable...)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.size))
	case kindRegular:
		b = append(b, textRegular...)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.size))
	}
	return b
}

// appendTail appends what follows entry i's contents.
func (n *NAR) appendTail(b []byte, i int) []byte {
	e := &n.entries[i]
	b = append(b, padding[:-e.contents()&(wordSize-1)]...)
	for range e.closes {
		b = append(b, textClose...)
	}
	return b
}

var padding [wordSize]byte

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, padding[:-len(s)&(wordSize-1)]...)
}

// entryAt returns the index of the entry whose part of the archive holds the byte at off.
func (n *NAR) entryAt(off int64) int {
	return sort.Search(len(n.entries), func(i int) bool { return n.entries[i].start > off }) - 1
}
