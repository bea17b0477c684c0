// Package simdht lets agents of the internet's hash table live some hours in some minutes, a hundred or more: the real
// discovery/dht and go-libp2p-kad-dht, peerstore, event bus and connection manager, on a virtual clock, on hosts
// whose connections take the time that published round trips between the world's regions take. What is simulated
// is the host and the network below it: no handshake is computed, no byte is lost, links are never full, and a
// dial of a machine that is gone takes TCP's patience.
//
// A seed decides who is where, has what, and comes and goes when; the order of goroutines at one instant, and
// the library's own dice, are Go's.
package simdht
