// Package doctor looks for everything a user could have wrong, and names what mends it.
//
// It has two halves. [Machine.Check] judges what only the agent knows: its store, its disk, its neighbours,
// its central caches; the agent fills a [Machine] in and answers over its control socket. [Here.Check]
// judges what only the caller's environment knows: Nix's configuration, the keys, the port, proxies; the
// command line fills a [Here] in.
//
// A check asks, listens and reads. It must never change anything, and never name a store path.
package doctor

import (
	"cmp"
	"slices"
)

// Levels of a finding.
const (
	OK   = "ok"   // looked at, and well
	Note = "note" // cannot be told, or is off by choice
	Warn = "warn" // works, but worse than it could
	Fail = "fail" // a part does not work
)

// Finding is the outcome of one check. IDs are stable: scripts and documentation refer to them.
type Finding struct {
	Check  string `json:"check"` // what was looked at
	ID     string `json:"id"`    // what was found; the check's name where all is well
	Level  string `json:"level"`
	What   string `json:"what"`             // in one line
	Why    string `json:"why,omitempty"`    // it matters
	Remedy string `json:"remedy,omitempty"` // the command, or the change of a file
	NixOS  string `json:"nixos,omitempty"`  // the option that does it on NixOS
}

// The checks, in the order in which they are shown: each may be the cause of those that follow.
const (
	CheckAgent     = "agent"
	CheckPort      = "port"
	CheckNix       = "nix"
	CheckKeys      = "keys"
	CheckProxy     = "proxy"
	CheckStore     = "store"
	CheckDisk      = "disk"
	CheckUpstream  = "upstream"
	CheckClock     = "clock"
	CheckMulticast = "multicast"
	CheckReachable = "reachable"
	CheckPeers     = "neighbours"
)

var order = []string{CheckAgent, CheckPort, CheckNix, CheckKeys, CheckProxy, CheckStore, CheckDisk, CheckUpstream,
	CheckClock, CheckMulticast, CheckReachable, CheckPeers}

// Report is what `flurry doctor --json` prints.
type Report struct {
	Healthy  bool      `json:"healthy"` // nothing fails
	Findings []Finding `json:"findings"`
}

// NewReport puts findings in order.
func NewReport(findings ...Finding) Report {
	r := Report{Healthy: true, Findings: slices.Clone(findings)}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.Check), slices.Index(order, b.Check))
	})
	for _, f := range r.Findings {
		r.Healthy = r.Healthy && f.Level != Fail
	}
	return r
}

// well is a check that found nothing wrong.
func well(check, what string) Finding { return Finding{Check: check, ID: check, Level: OK, What: what} }

// orWell adds that a check is well if it found nothing.
func orWell(found []Finding, check, what string) []Finding {
	if len(found) == 0 {
		return []Finding{well(check, what)}
	}
	return found
}
