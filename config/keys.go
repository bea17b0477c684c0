package config

import "strings"

// key is one line of the table that everything comes from.
type key struct {
	name  string // dotted
	def   string // the default, as written in TOML
	doc   string // a sentence or two; %s-free plain text
	field func(c *Config, u *Upstream) any
	clean func(string) (string, error) // checks and normalises a string, or each of a list
	check func(c *Config) error        // of the whole value, after it was stored
}

func (k *key) section() string { s, _, _ := strings.Cut(k.name, "."); return s }
func (k *key) last() string    { _, s, _ := strings.Cut(k.name, "."); return s }

// flag is the key's name on the command line, without dashes.
func (k *key) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(k.name) }

// env is the key's name in the environment.
func (k *key) env() string {
	return "FLURRY_" + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

func (k *key) isUpstream() bool { return k.section() == "upstream" }

// section is a table of the file.
type section struct{ name, doc string }

var sections = []section{
	{"state", "What the agent writes: its identity, cached narinfos, spooled NARs."},
	{"substituter", "The binary cache that Nix talks to."},
	{"store", "The local Nix store, which is only ever read."},
	{"upstream", "A central cache; may be given several times. Without any, cache.nixos.org."},
	{"peers", "How other agents on the local network are found and heard."},
	{"internet", "Peers beyond the local network. Off unless enabled."},
	{"limits", "What the agent may take from this machine and its link."},
	{"log", "What goes to standard error."},
}

// table returns every key. It is built on demand, so that nothing global can be changed.
func table() []*key {
	groups := [][]*key{
		stateKeys(), substituterKeys(), storeKeys(), upstreamKeys(),
		peersKeys(), internetKeys(), limitsKeys(), logKeys(),
	}
	var all []*key
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

func stateKeys() []*key {
	return []*key{{
		name: "state.dir", def: `""`, clean: optional(absolute),
		doc:   "Directory of the agent's state. Empty: $STATE_DIRECTORY, else $XDG_STATE_HOME/flurry, else ~/.local/state/flurry.",
		field: func(c *Config, _ *Upstream) any { return &c.State.Dir },
	}}
}

func substituterKeys() []*key {
	return []*key{{
		name: "substituter.listen", def: `["127.0.0.1:6490"]`, clean: hostPort, check: checkListen,
		doc:   "Addresses, host:port, on which Nix is answered. Nix remembers a cache by its address for weeks: change it seldom.",
		field: func(c *Config, _ *Upstream) any { return &c.Substituter.Listen },
	}, {
		name: "substituter.priority", def: `30`, check: checkPriority,
		doc:   "Place among Nix's substituters; the lowest is asked first, and cache.nixos.org has 40.",
		field: func(c *Config, _ *Upstream) any { return &c.Substituter.Priority },
	}, {
		name: "substituter.max_buffer", def: `"8MiB"`, check: checkMaxBuffer,
		doc:   "Memory for one NAR that is being collected from peers; what is larger goes to a spool file.",
		field: func(c *Config, _ *Upstream) any { return &c.Substituter.MaxBuffer },
	}, {
		name: "substituter.allowed_hosts", def: `[]`, clean: hostName,
		doc:   "Host names by which clients may call this cache, besides localhost and the listen addresses. Others are refused, against DNS rebinding.",
		field: func(c *Config, _ *Upstream) any { return &c.Substituter.AllowedHosts },
	}}
}

func storeKeys() []*key {
	return []*key{{
		name: "store.dir", def: `"/nix/store"`, clean: absolute,
		doc:   "Directory of the Nix store.",
		field: func(c *Config, _ *Upstream) any { return &c.Store.Dir },
	}, {
		name: "store.database", def: `"/nix/var/nix/db/db.sqlite"`, clean: optional(absolute),
		doc:   "Database of the Nix store. Empty: this machine has no store; the agent still substitutes.",
		field: func(c *Config, _ *Upstream) any { return &c.Store.Database },
	}, {
		name: "store.real_dir", def: `""`, clean: optional(absolute),
		doc:   "Where the store directory's files really lie, for a chroot store such as /mnt/nix/store. Empty: store.dir.",
		field: func(c *Config, _ *Upstream) any { return &c.Store.RealDir },
	}}
}

func upstreamKeys() []*key {
	return []*key{{
		name: "upstream.url", def: `"` + DefaultUpstreamURL + `"`, clean: cacheURL,
		doc:   "Address of the cache, http or https.",
		field: func(_ *Config, u *Upstream) any { return &u.URL },
	}, {
		name: "upstream.keys", def: `["` + DefaultUpstreamKey + `"]`, clean: publicKey,
		doc:   "Public keys whose signatures count, as in nix.conf's trusted-public-keys. Required, except for cache.nixos.org.",
		field: func(_ *Config, u *Upstream) any { return &u.Keys },
	}, {
		name: "upstream.public", def: `true`,
		doc:   "Whether paths that these keys signed may be shared with anybody. Default: true for cache.nixos.org, false for others, whose paths go only to peers that know peers.secret_file.",
		field: func(_ *Config, u *Upstream) any { return &u.Public },
	}, {
		name: "upstream.headers_file", def: `""`, clean: optional(absolute),
		doc:   "File with headers for every request to this cache, one \"Name: value\" a line, such as an Authorization.",
		field: func(_ *Config, u *Upstream) any { return &u.HeadersFile },
	}, {
		name: "upstream.netrc_file", def: `""`, clean: optional(absolute),
		doc:   "File with name and password for this cache's host in netrc's form, as Nix's netrc-file: what \"cachix\" and \"attic use\" write.",
		field: func(_ *Config, u *Upstream) any { return &u.NetrcFile },
	}}
}

func peersKeys() []*key {
	return []*key{{
		name: "peers.listen", def: `[":6491"]`, clean: hostPort, check: checkPeersListen,
		doc:   "Addresses, host:port, for other agents; each means TCP and UDP. Empty: reach out, but let nobody in.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.Listen },
	}, {
		name: "peers.mdns", def: `true`,
		doc:   "Find agents on the local network by multicast, and be found.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.MDNS },
	}, {
		name: "peers.interfaces", def: `[]`, clean: interfaceName,
		doc:   "Network interfaces for multicast. Empty: all that are up, without those of containers and tunnels.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.Interfaces },
	}, {
		name:  "peers.networks",
		def:   `["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"]`,
		doc:   "Networks in which the agent announces itself; on an address outside them it keeps silent. The default is the private ranges.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.Networks },
	}, {
		name: "peers.static", def: `[]`, clean: staticPeer,
		doc:   "Agents to stay connected with: host, host:port or multiaddr, as \"flurry id\" prints them.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.Static },
	}, {
		name: "peers.introduce", def: `true`,
		doc:   "Let the agents of peers.static tell others of this site that name them where this one is, and this one of those; do the same for agents that name this one.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.Introduce },
	}, {
		name: "peers.secret_file", def: `""`, clean: optional(absolute),
		doc:   "File with the group secret. Peers that prove they know it also get paths of caches that are not public.",
		field: func(c *Config, _ *Upstream) any { return &c.Peers.SecretFile },
	}}
}

func internetKeys() []*key {
	return []*key{{
		name: "internet.enable", def: `false`,
		doc:   "Share with agents anywhere, found through a distributed hash table. Tells strangers which public paths this machine has.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.Enable },
	}, {
		name: "internet.prefer", def: `"speed"`, clean: oneOf("speed", "offload"),
		doc:   "What internet peers are for: \"speed\", only what comes quicker than from the central cache; \"offload\", whatever spares it.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.Prefer },
	}, {
		name: "internet.bootstrap", def: `[]`, clean: multiaddrWithID,
		doc:   "Multiaddrs, with /p2p/…, through which the hash table is entered. Empty: only agents met before, or those that find this one.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.Bootstrap },
	}, {
		name: "internet.public_addresses", def: `[]`, clean: multiaddr,
		doc:   "Multiaddrs under which this agent is reached from outside. Empty: found out.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.PublicAddresses },
	}, {
		name: "internet.relay", def: `true`,
		doc:   "Where no direct connection comes in, meet peers through relays and punch a hole; where that fails NARs take the relay, 64 MiB a connection.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.Relay },
	}, {
		name: "internet.serve_relay", def: `false`,
		doc:   "Be such a relay for others, if reachable.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.ServeRelay },
	}, {
		name: "internet.upload", def: `"20Mbit/s"`,
		doc:   "What may be sent to agents beyond the site, all together; \"0\" means that only limits.upload counts.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.Upload },
	}, {
		name: "internet.min_nar_size", def: `"256KiB"`,
		doc:   "Smaller NARs are neither announced nor looked up: finding them would cost more than they do.",
		field: func(c *Config, _ *Upstream) any { return &c.Internet.MinNarSize },
	}}
}

func limitsKeys() []*key {
	return []*key{{
		name: "limits.upload", def: `"unlimited"`,
		doc:   "Rate to all peers together.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.Upload },
	}, {
		name: "limits.download", def: `"unlimited"`,
		doc:   "Rate from all peers and central caches together.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.Download },
	}, {
		name: "limits.connections", def: `256`, check: checkConnections,
		doc:   "Most connections with peers, both ways together.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.Connections },
	}, {
		name: "limits.cache_size", def: `"4GiB"`, check: checkCacheSize,
		doc:   "Most disk space for cached narinfos and spooled NARs.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.CacheSize },
	}, {
		name: "limits.keep_for_others", def: `"1m"`,
		doc:   "How long a NAR stays in the spool after its last use, for neighbours that want it next; what is in the Nix store is served from there.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.KeepForOthers },
	}, {
		name: "limits.metered", def: `"auto"`,
		doc:   "Whether this machine's link is paid by the byte; then nothing is uploaded. \"auto\" follows NetworkManager, \"yes\" and \"no\" (or true and false) decide it.",
		field: func(c *Config, _ *Upstream) any { return &c.Limits.Metered },
	}}
}

func logKeys() []*key {
	return []*key{{
		name: "log.level", def: `"info"`,
		doc:   "The least that is logged: debug, info, warn or error.",
		field: func(c *Config, _ *Upstream) any { return &c.Log.Level },
	}, {
		name: "log.format", def: `"text"`, clean: oneOf("text", "json"),
		doc:   "text or json.",
		field: func(c *Config, _ *Upstream) any { return &c.Log.Format },
	}}
}
