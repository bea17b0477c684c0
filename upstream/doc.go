// Package upstream is the HTTP client of one central cache: it asks for narinfos, streams NARs
// (decompressing them and resuming broken downloads in place), and passes on what Nix may want
// besides (listings, logs, realisations).
//
// It believes a narinfo only when a configured key signed it, and it must never turn trouble into an
// absence: [ErrAbsent] means that the cache itself said so, everything else is [ErrUnreachable] or a
// diagnosis. NAR bytes are bounded here but not verified; that is the caller's part. URLs come from the
// configuration or from this cache's own narinfos, never from a peer. Credentials go to the configured
// origin alone and appear in no error, log or status.
//
// Formats: Nix manual, "Binary Cache Format"; HTTP ranges: RFC 9110, section 14.
package upstream
