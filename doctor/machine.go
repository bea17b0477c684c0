package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// What counts as too little.
const (
	stateFail = 64 << 20  // bytes free in the state directory: NARs on their way are spooled there
	stateWarn = 512 << 20 // one large NAR
	storeFail = 256 << 20 // bytes free in the store: the next update will not fit
	storeWarn = 1 << 30
	fewInodes = 1000

	slowAnswer = time.Second // of a central cache to its smallest question
	slowRate   = 1e6         // bytes per second of uncompressed NAR from central caches

	skewWarn = 30 * time.Second // beyond an HTTP date's second and a slow answer
	skewFail = 5 * time.Minute  // certificates and signatures begin to look invalid
)

// Machine is what an agent knows of its surroundings. Zero values mean that it does not know.
type Machine struct {
	Store     Store
	Disks     []Disk
	Upstreams []Upstream
	Peers     Peers
	Now       time.Time
}

// Store is the local Nix store.
type Store struct {
	Database string // "" for no local store
	Dir      string
	Err      error // of reading the database just now; nil if it could be read
	DirErr   error // of looking into Dir
	Paths    int
	Stale    bool // the database is read without its write-ahead log
}

// Disk is the room below one directory.
type Disk struct {
	Name       string // "state" or "store"
	Dir        string
	Free       int64 // bytes
	FreeInodes int64 // -1 unknown
	Err        error
}

// Upstream is one central cache, asked for its nix-cache-info just now.
type Upstream struct {
	URL  string
	Err  error
	Took time.Duration
	Skew time.Duration // its clock minus ours; valid if HasDate
	// HasDate: the answer told its time.
	HasDate bool
	Rate    float64 // NAR bytes per second of all together, measured lately; 0 unknown or said of another
}

// Peers is the part that talks to other agents.
type Peers struct {
	Problem    string // why there is none, "" if there is
	Off        bool   // by configuration
	Paused     bool
	Port       int
	MDNS       bool
	Links      []Link
	Passed     []Passed // interfaces that are not used
	Routed     []Routed
	Neighbours []Neighbour
	DialBacks  []DialBack
	Version    string // this agent's
	KnownOnce  int    // peers of which there is a record, connected or not
}

// Link is an interface on which neighbours are looked for.
type Link struct {
	Name     string
	Networks []netip.Prefix
	Returned bool     // a multicast packet sent there came back
	Answered []string // peer ids
	Err      error
}

// Passed is an interface that is up and not used.
type Passed struct{ Name, Why string }

// Routed is a local network that this machine's packets leave for by another interface.
type Routed struct {
	Network netip.Prefix
	Link    string
	By      string // local address that the kernel chooses, or the error
}

// Neighbour is a connected peer.
type Neighbour struct {
	ID      string
	Via     string
	Version string // such as "flurry/1.0", "" if not known
	Addrs   []netip.Addr
}

// DialBack is what one neighbour says of how it reaches this agent.
type DialBack struct {
	TCP, UDP bool
}

// Check judges all of it.
func (m Machine) Check() []Finding {
	var out []Finding
	out = append(out, m.Store.check()...)
	out = append(out, m.disks()...)
	out = append(out, m.upstreams()...)
	out = append(out, m.clock()...)
	out = append(out, m.Peers.check()...)
	return out
}

func (s Store) check() []Finding {
	const why = "Without it this machine shares nothing, and asks others for what it has itself."
	var out []Finding
	switch {
	case s.Database == "":
		return []Finding{{Check: CheckStore, ID: "store-off", Level: Note, What: "no local store is configured; nothing can be shared", Remedy: "set store.database, or leave it so"}}
	case s.Err != nil:
		out = append(out, Finding{Check: CheckStore, ID: "store-unreadable", Level: Fail, What: oneLine(s.Err), Why: why,
			Remedy: "chmod 755 /nix/var/nix/db && chmod 644 /nix/var/nix/db/db.sqlite, or name the right file as store.database",
			NixOS:  "services.flurry.settings.store.dir, where the store is not /nix/store"})
	case s.DirErr != nil:
		out = append(out, Finding{Check: CheckStore, ID: "store-files-unreadable", Level: Fail,
			What: "the files of " + s.Dir + " cannot be read: " + oneLine(s.DirErr), Why: why,
			Remedy: "make " + s.Dir + " readable for the agent's user (Nix's default is 1775, root:nixbld)"})
	}
	what := fmt.Sprintf("%s is readable, %d paths", s.Database, s.Paths)
	if s.Stale {
		what += "; changes are seen a little late, because this user cannot open its write-ahead log now"
	}
	return orWell(out, CheckStore, what)
}

func (m Machine) disks() []Finding {
	var out []Finding
	var fine []string
	for _, d := range m.Disks {
		fail, warn := int64(stateFail), int64(stateWarn)
		why := "NARs on their way are spooled here; without room large ones cannot be fetched."
		remedy := "make room in " + d.Dir + ", or set state.dir to a larger file system"
		nixos := "fileSystems, or less in services.flurry.settings.limits.cache_size"
		if d.Name == "store" {
			fail, warn, why = storeFail, storeWarn, "Nix fails in the middle of an update when its store is full."
			remedy, nixos = "nix-collect-garbage -d", "nix.gc.automatic = true; nix.settings.min-free"
		}
		f := Finding{Check: CheckDisk, ID: "disk-" + d.Name, Why: why, Remedy: remedy, NixOS: nixos}
		switch {
		case d.Err != nil:
			f.Level, f.What = Fail, "the room in "+d.Dir+" cannot be told: "+oneLine(d.Err)
		case d.Free < fail:
			f.Level, f.What = Fail, fmt.Sprintf("only %s are free in %s", size(d.Free), d.Dir)
		case d.FreeInodes >= 0 && d.FreeInodes < fewInodes:
			f.Level, f.What = Fail, fmt.Sprintf("only %d files can still be made in %s", d.FreeInodes, d.Dir)
		case d.Free < warn:
			f.Level, f.What = Warn, fmt.Sprintf("only %s are free in %s", size(d.Free), d.Dir)
		default:
			fine = append(fine, size(d.Free)+" free in "+d.Dir)
			continue
		}
		out = append(out, f)
	}
	return orWell(out, CheckDisk, strings.Join(fine, ", "))
}

func (m Machine) upstreams() []Finding {
	var out []Finding
	var fine []string
	bad := 0
	for _, u := range m.Upstreams {
		if u.Err != nil {
			bad++
		}
	}
	for _, u := range m.Upstreams {
		const slow = "Whatever no neighbour has comes from there."
		switch {
		case u.Err != nil:
			level := Warn
			if bad == len(m.Upstreams) {
				level = Fail
			}
			out = append(out, Finding{Check: CheckUpstream, ID: "upstream-unreachable", Level: level, What: oneLine(u.Err),
				Why:    slow + " Paths that only it has cannot be had now.",
				Remedy: "curl -v " + u.URL + "/nix-cache-info; then look at the network, its proxy (https_proxy of the agent), or the address in the configuration",
				NixOS:  "services.flurry.settings.upstream; networking.proxy.default"})
		case u.Took > slowAnswer:
			out = append(out, Finding{Check: CheckUpstream, ID: "upstream-slow", Level: Warn,
				What: fmt.Sprintf("%s took %s to answer its smallest question", u.URL, u.Took.Round(10*time.Millisecond)), Why: slow,
				Remedy: "ping its host; a closer mirror can be named before it as a further [[upstream]]", NixOS: "services.flurry.settings.upstream"})
		case u.Rate > 0 && u.Rate < slowRate:
			out = append(out, Finding{Check: CheckUpstream, ID: "upstream-slow", Level: Warn,
				What: fmt.Sprintf("the central caches gave %s/s lately", size(int64(u.Rate))), Why: slow,
				Remedy: "look at who uses the line; limits.download may be set too low", NixOS: "services.flurry.settings.limits.download"})
		default:
			fine = append(fine, fmt.Sprintf("%s answers in %s", u.URL, u.Took.Round(time.Millisecond)))
		}
	}
	return orWell(out, CheckUpstream, strings.Join(fine, ", "))
}

func (m Machine) clock() []Finding {
	for _, u := range m.Upstreams {
		if !u.HasDate {
			continue
		}
		off := u.Skew.Abs()
		if off < skewWarn {
			return []Finding{well(CheckClock, "agrees with "+u.URL)}
		}
		level, way := Warn, "behind"
		if off >= skewFail {
			level = Fail
		}
		if u.Skew < 0 {
			way = "ahead of"
		}
		return []Finding{{Check: CheckClock, ID: "clock-skew", Level: level,
			What:   fmt.Sprintf("this machine's clock is %s %s %s's", off.Round(time.Second), way, u.URL),
			Why:    "Certificates of central caches count as invalid, and what is remembered expires too early or never.",
			Remedy: "timedatectl set-ntp true; timedatectl status", NixOS: "services.timesyncd.enable = true"}}
	}
	return []Finding{{Check: CheckClock, ID: "clock-unknown", Level: Note, What: "no central cache told the time"}}
}

// oneLine is an error's text as one printable line.
func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
}

// size is in decimal units.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0f kB", float64(n)/1e3)
}

func inAny(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}
