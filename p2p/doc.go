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
// These protocols run on their streams:
//
//   - /flurry/1: HTTP/1.1, one request after another on a stream, many streams side by side.
//     GET /<digest>.narinfo, where digest is SHA-256 of the store hash's 32 characters in Nix base32
//     (52 characters): the narinfo with the signed fields and the signatures its reader may see.
//     GET /nar/<store hash>-<NarHash in base32>.nar, Range honoured: the uncompressed NAR.
//     With Accept-Encoding: zstd an answer may have Content-Encoding: zstd and no length: it is then the range of the NAR,
//     compressed (the range is not one of the compressed form, as it would be elsewhere on the web); the sender may
//     always decline. Its window is at most 512 KiB, and it is at most 64 KiB longer than the range.
//     GET /nix-cache-info. 200, 206, 404 or, for a range that is not there, 416; nothing else is said
//     about a path. 503 means that enough NARs are on their way already: ask again, after Retry-After seconds,
//     or elsewhere. A request for a NAR may say in Flurry-Pace how many bytes per second, in decimal, its reader wants
//     from this server, all answers together; who does not know it sends as quickly as it is read. A request
//     with a body is cut.
//     GET /nar/<store hash>-<NarHash>.nar.chain, to whoever may have the NAR: its chain, 16 bytes of header
//     (magic "flch", version 1, log2 of the chunk size, which is 20, two zeros, the NAR's size as 8 bytes,
//     big-endian) and 32 bytes, SHA-256's inner state, after every chunk but the last; a claim, see
//     verify.Chain. Who does not know the version takes it as absent.
//
//   - /flurry/have/1: each side opens one stream towards the other and writes frames on it for as long
//     as the connection lives: uvarint length, type byte, payload. Type 1 (hello): JSON. Type 2
//     (snapshot): a binary fuse filter with 16-bit fingerprints over the digests' first 64 bits.
//     Type 3 (delta): added and removed keys, at most 16,384 of each. The hello comes first and once;
//     a new snapshot replaces all before. Unknown types, up to 64 KiB, and unknown JSON fields are
//     skipped. A newer stream replaces an older one of the same peer; a stream that ends takes what it
//     said with it, and its sender begins anew, with pauses that grow to a minute. A receiver that has
//     no memory left drops the have-set and resets the stream when it has some again.
//
//   - /flurry/group/1: proof of knowledge of the group secret, a key of at least 32 bytes. The peer with
//     the smaller id (as bytes) opens a stream once connected. Both say a nonce of 32 bytes, the
//     initiator first; then the initiator says its proof and the responder answers with its own, or with
//     32 random bytes if the initiator's was wrong. A proof is HMAC-SHA256 with the secret over
//     "flurry group 1", "initiator" or "responder", the initiator's id, the responder's id, the
//     initiator's nonce and the responder's, each behind its length as two bytes, big-endian. An agent without a
//     secret does the same with a random key. The proof holds until the peers are disconnected; the
//     have-set streams then start anew for the larger audience.
//
//   - /flurry/flights/1: each side opens one stream and tells of publicly signed NARs on their way: frames
//     as above, type 1: for each NAR its key, a stage (one byte; 0 takes it back), a count and so many byte
//     ranges that can be had already (first byte and length as uvarints). Type 2: how many bytes of public NARs and narinfos
//     the sender got from central caches since it started, a uvarint; what follows it, and unknown types, are skipped.
//
//   - /flurry/peers/1: whoever was told by its operator to stay connected with a peer opens a stream to it and says its
//     own ports for TCP and QUIC as in dialback, 0 for none. That means: tell me of others who did the same, and
//     them of me, at the address that I am connected from. The answer is frames as above, of at most 16 KiB, at most
//     one a second: type 1, a JSON list of at most 32 {"id", "addrs"}, said anew with each newcomer and every
//     minute. Both sides leave out addresses outside their networks, and, if they have a group secret, all who have
//     not proved it. Unknown types are skipped.
//
//   - /flurry/dialback/1: the asker says its ports for TCP and QUIC, two bytes each, big-endian. The
//     answerer dials them at the address that the asker is connected from, and at no other, with the asker's
//     identity, and answers with a byte for each: 0 not reached, 1 reached, 2 refused (ports below 1024,
//     a relayed connection, or asked too often). Both end the stream.
//
// Every message has a maximum size and every request a progress deadline. The server answers only from
// its [Catalog], which decides by the reader's audience; it holds no way to ask others.
package p2p
