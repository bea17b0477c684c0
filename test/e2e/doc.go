//go:build linux

// Package e2e drives the real flurry binary in the lab: every machine is a network namespace with
// its own address, multicast and /nix, the client is Debian's Nix (and a newer one), the central
// cache is nginx, and the files are a signed binary cache made of Debian packages. See lab/README.md.
//
// It knows the program only from outside: command line, configuration file, sockets and `flurry
// status --json`. It must never import the packages it tests, leave a process or namespace behind, or
// touch the host's network or /nix.
//
// It needs root, the lab's Debian packages and the medium corpus, which `make test` sees to. Without
// them the tests are skipped, or fail where FLURRY_REQUIRE_ALL=1.
package e2e
