package doctor

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// defaultPriority is what Nix takes for a cache that says none, which is before all others.
const defaultPriority = 0

// daemonSocket is where Nix finds its daemon.
const daemonSocket = "/nix/var/nix/daemon-socket/socket"

// nix checks that Nix asks this agent, first, and trusts the same keys.
func (h Here) nix(ctx context.Context) []Finding {
	theirs, asked := h.askNix(ctx)
	if !asked {
		theirs = readNixSettings(h.env, false)
		if len(theirs.files) == 0 && !h.hasNix() {
			return []Finding{{Check: CheckNix, ID: "nix-absent", Level: Note, What: "Nix is not installed here; nothing can ask this agent"}}
		}
	}
	system := readNixSettings(h.env, true)
	acting := theirs // whose settings decide what is downloaded from where
	daemon := h.usesDaemon(theirs.store)
	if daemon {
		acting = system
	}
	var out []Finding
	out = append(out, h.asks(theirs, system, daemon)...)
	if len(out) == 0 {
		out = append(out, h.asksFirst(ctx, acting)...)
	}
	out = append(out, staleDaemon(system)...)
	for _, p := range system.problems {
		out = append(out, Finding{Check: CheckNix, ID: "nix-conf-broken", Level: Fail, What: "Nix's configuration cannot be read: " + p,
			Why: "Nix ends with an error, or ignores a part.", Remedy: "look at " + systemFile(h.env), NixOS: "nix.extraOptions"})
	}
	out = orWell(out, CheckNix, "asks this agent first")
	return append(out, h.sameKeys(acting)...)
}

func (h Here) hasNix() bool {
	_, err := os.Stat(h.lookPath("nix-store"))
	return err == nil
}

// usesDaemon tells whether the caller's Nix lets a daemon do the work.
func (h Here) usesDaemon(store string) bool {
	if remote := h.env("NIX_REMOTE"); remote != "" {
		store = remote
	}
	switch {
	case store == "daemon" || strings.HasPrefix(store, "unix://"):
		return true
	case store != "auto" && store != "":
		return false
	}
	if _, err := os.Stat(daemonSocket); err != nil {
		return false
	}
	return os.Geteuid() != 0
}

func (h Here) lists(s nixSettings) bool { return slices.ContainsFunc(s.substituters, h.isOurs) }

// asks finds out whether our address is among the substituters of whoever does the work.
func (h Here) asks(theirs, system nixSettings, daemon bool) []Finding {
	const why = "Without it Nix downloads everything from the central caches itself."
	add := "echo 'extra-substituters = http://" + dialable(h.Listen[0]) + "' >> " + systemFile(h.env) + " && systemctl restart nix-daemon"
	missing := Finding{Check: CheckNix, ID: "nix-not-asking", Level: Fail, Why: why, Remedy: add, NixOS: "services.flurry.configureNix = true",
		What: "this agent is not among Nix's substituters (" + strings.Join(theirs.substituters, " ") + ")"}
	switch {
	case !daemon && h.lists(theirs), daemon && h.lists(system):
		if daemon && !h.lists(theirs) {
			missing.What = "the nix-daemon asks this agent, but this user's configuration overrides the substituters: " + strings.Join(theirs.substituters, " ")
			missing.Remedy = "use extra-substituters instead of substituters in " + strings.Join(userFiles(h.env), ", ") + " or NIX_CONFIG"
			missing.Level = Warn
			return []Finding{missing}
		}
		return nil
	case !h.lists(theirs):
		return []Finding{missing}
	}
	// The caller asks for it; does the daemon obey?
	name, groups := caller()
	trusted := slices.ContainsFunc(append(groups, name, "*"), func(who string) bool { return slices.Contains(system.trustedUsers, who) })
	if trusted || slices.ContainsFunc(system.trustedSubstituters, h.isOurs) {
		return nil
	}
	return []Finding{{Check: CheckNix, ID: "nix-user-not-trusted", Level: Fail,
		What: fmt.Sprintf("this agent is a substituter in %s's own configuration only, which the nix-daemon ignores: %s is not in trusted-users", name, name),
		Why:  why, Remedy: add + "; or add it to trusted-substituters there", NixOS: "services.flurry.configureNix = true, or nix.settings.trusted-substituters"}}
}

// asksFirst compares our priority with the other substituters'.
func (h Here) asksFirst(ctx context.Context, s nixSettings) []Finding {
	prio := make([]int, len(s.substituters))
	known := make([]bool, len(s.substituters))
	var wg sync.WaitGroup
	for i, sub := range s.substituters {
		wg.Go(func() { prio[i], known[i] = priority(ctx, sub) })
	}
	wg.Wait()
	ours := slices.IndexFunc(s.substituters, h.isOurs)
	if ours < 0 || !known[ours] {
		return nil
	}
	for i, sub := range s.substituters {
		if i == ours || !known[i] || prio[i] > prio[ours] || prio[i] == prio[ours] && i > ours {
			continue
		}
		return []Finding{{Check: CheckNix, ID: "nix-order", Level: Fail,
			What:   fmt.Sprintf("Nix asks %s (priority %d) before this agent (%d)", bare(sub), prio[i], prio[ours]),
			Why:    "What that cache has is downloaded from there, whoever of the neighbours has it.",
			Remedy: fmt.Sprintf("set substituter.priority below %d, or write %s?priority=%d in nix.conf", prio[i], bare(sub), prio[ours]+10),
			NixOS:  "services.flurry.settings.substituter.priority"}}
	}
	return nil
}

// bare is a URL without its query, which may hold a secret.
func bare(sub string) string { s, _, _ := strings.Cut(sub, "?"); return s }

// priority is a substituter's: from its URL, else from what it says.
func priority(ctx context.Context, sub string) (int, bool) {
	u, err := url.Parse(sub)
	if err != nil {
		return 0, false
	}
	if n, err := strconv.Atoi(u.Query().Get("priority")); err == nil {
		return n, true
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return 0, false
	}
	u.RawQuery = ""
	body, err := get(ctx, strings.TrimSuffix(u.String(), "/")+"/nix-cache-info")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, "Priority:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return n, err == nil
		}
	}
	return defaultPriority, true
}

// staleDaemon finds a nix-daemon that is older than its configuration.
func staleDaemon(system nixSettings) []Finding {
	started, ok := daemonStart()
	if !ok {
		return nil
	}
	const slack = 2 * time.Second // process times are in hundredths since boot, file times by another clock
	for _, f := range system.files {
		if f.changed.After(started.Add(slack)) {
			return []Finding{{Check: CheckNix, ID: "nix-daemon-stale", Level: Fail,
				What: fmt.Sprintf("%s changed %s after the nix-daemon started", f.name, f.changed.Sub(started).Round(time.Second)),
				Why:  "The daemon read it at its start and knows nothing of the change.", Remedy: "systemctl restart nix-daemon",
				NixOS: "nixos-rebuild switch does it"}}
		}
	}
	return nil
}

// sameKeys compares the keys that Nix trusts with those that the agent does.
func (h Here) sameKeys(s nixSettings) []Finding {
	if h.Keys == nil {
		return []Finding{{Check: CheckKeys, ID: "keys-unknown", Level: Note, What: "no agent tells which keys it trusts"}}
	}
	var out []Finding
	if lacks := without(h.Keys, s.keys); len(lacks) > 0 {
		out = append(out, Finding{Check: CheckKeys, ID: "keys-nix-lacks", Level: Fail,
			What: "Nix does not trust what this agent does: " + strings.Join(lacks, " "), Why: "Nix refuses every path that only these keys signed, after it was fetched.",
			Remedy: "extra-trusted-public-keys = " + strings.Join(lacks, " ") + " in nix.conf; then systemctl restart nix-daemon",
			NixOS:  "services.flurry.configureNix = true, or nix.settings.trusted-public-keys"})
	}
	if lacks := without(s.keys, h.Keys); len(lacks) > 0 {
		out = append(out, Finding{Check: CheckKeys, ID: "keys-flurry-lacks", Level: Warn,
			What: "Nix trusts keys that this agent does not know: " + strings.Join(lacks, " "), Why: "Paths of those caches come from there alone, never from a neighbour.",
			Remedy: "name the cache with its keys as [[upstream]] in flurry.toml", NixOS: "services.flurry.settings.upstream"})
	}
	return orWell(out, CheckKeys, fmt.Sprintf("the same %d for Nix and for this agent", len(s.keys)))
}
