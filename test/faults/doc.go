// Package faults is the fault matrix: real Nix asks a real agent, whose sources refuse, hang, stall,
// dribble, lie and bomb in every way there is a name for. Beside each hostile source stands an honest one,
// and Nix must get its closure; where all are hostile, the agent must say so within seconds.
//
// A hostile upstream is an HTTP server, a hostile peer a libp2p host that speaks the peer wire on its own
// (p2p/p2ptest). The agent is the built program with a state directory of its own, on loopback, without
// multicast. `make matrix` runs every cell and writes docs/faults.md; `make test` runs some.
//
// Everything is in test files: the package is nobody's library.
package faults
