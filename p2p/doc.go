// Package p2p is the peer wire: a libp2p host, the client and the server of the protocol that agents
// speak, and the table of the peers that are connected.
//
// # Wire, version 1
//
// Participants are agents. Goals: a peer's narinfos and NARs at the speed of the link; misses that
// cost no packet; nothing said about paths that the listener may not have. Non-goals: trust in a
// peer's bytes (the reader verifies), listing what a peer has, forwarding on behalf of others.
//
// Connections are libp2p's: TCP+TLS 1.3 with yamux first, QUIC second, both on one port number.
// Two protocols run on their streams:
//
//   - /flurry/1: HTTP/1.1, one request after another on a stream, many streams side by side.
//     GET /<digest>.narinfo, where digest is SHA-256 of the store hash's 32 characters in Nix base32
//     (52 characters): the narinfo with the signed fields and the signatures its reader may see.
//     GET /nar/<store hash>-<NarHash in base32>.nar, Range honoured: the uncompressed NAR.
//     GET /nix-cache-info. 200, 206 or 404; nothing else is said about a path.
//   - /flurry/have/1: each side opens one stream towards the other and writes frames on it for as long
//     as the connection lives: uvarint length, type byte, payload. Type 1 (hello): JSON. Type 2
//     (snapshot): a binary fuse filter with 16-bit fingerprints over the digests' first 64 bits.
//     Type 3 (delta): added and removed keys. Unknown types and unknown JSON fields are skipped.
//
// Every message has a maximum size and every request a progress deadline. The server answers only from
// its [Catalog], which decides by the reader's audience; it holds no way to ask others.
package p2p
