// Package verify decides what may be believed. It parses and prints narinfos, computes the
// fingerprint that a binary cache signs, checks signatures against configured keys, and checks NAR
// bytes against a signed hash and size.
//
// It is pure: no file, no socket, no clock, no import of another package of this module; bytes come
// in through io.Reader at most. Everything it reads is hostile until proven: parsers are bounded, and
// a [NarInfo] (a claim) has another type than a [Verified] one (a fact).
//
// Formats: Nix manual, "Binary Cache Format"; Nix source, src/libstore/nar-info.cc (fields),
// path-info.cc (fingerprint) and libutil/hash.cc (hash notations).
package verify
