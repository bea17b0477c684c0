package archtest

// A rule forbids edges of the import graph. Packages of this module are written "./name", others by
// their import path. "p/..." is p and all below it; "*" is everything outside the standard library.
type rule struct {
	from   string   // who must not import
	butNot []string // except these importers
	to     string   // what must not be imported
	allow  []string // except these
	tests  bool     // whether test files are bound too
	reason string
}

var (
	goNix = "github.com/nix-community/go-nix/..."
)

// rules is the house, from the bottom up.
var rules = []rule{
	{
		from: "./verify/...", to: "./...", allow: []string{"./verify/..."}, tests: true,
		reason: "what decides about trust can be read, tested and fuzzed alone",
	},
	{
		from: "./verify/...", to: "*", allow: []string{"./verify/...", goNix},
		reason: "what decides about trust has as little code below it as can be",
	},
	{
		from: "./verify/...", to: "*", tests: true,
		allow:  []string{"./verify/...", goNix, "pgregory.net/rapid", "github.com/google/go-cmp/...", "github.com/xi2/xz"},
		reason: "its tests stay inside verify and its oracle go-nix; beside them only tools: properties, differences, xz for the NAR fixture",
	},
	{from: "./verify/...", to: "os/...", reason: "verify is pure: no files"},
	{from: "./verify/...", to: "net/...", reason: "verify is pure: no sockets"},
	{from: "./verify/...", to: "time", reason: "verify is pure: no clock"},
	{from: "./verify/...", to: "log/...", reason: "verify is pure: it returns errors"},
	{
		from: "./config/...", to: "./...", allow: []string{"./config/...", "./verify"},
		reason: "configuration is plain values; cmd hands each package its part",
	},
	{
		from: "./binarycache/...", to: "./...", allow: []string{"./binarycache/...", "./verify"},
		reason: "the protocol's form is shared by those who serve it and decides nothing",
	},
	{
		from: "./store/...", to: "./...", allow: []string{"./store/...", "./verify", "./internal/beat"},
		reason: "the window on the local store knows no network and no peers",
	},
	{
		from: "./store/nar/...", to: "./...", allow: []string{"./store/nar/...", "./verify"},
		reason: "writing NARs needs no database",
	},
	{
		from: "./upstream/...", to: "./...", allow: []string{"./upstream/...", "./verify", "./internal/throttle"},
		reason: "a client of central caches knows neither peers nor the local store",
	},
	{
		from: "./discovery", to: "./...", allow: []string{"./verify"},
		reason: "the contract does not know its mechanisms",
	},
	{
		from: "./discovery/mdns/...", to: "./...", allow: []string{"./discovery", "./discovery/mdns/...", "./verify"},
		reason: "a mechanism knows the contract only, not its siblings nor who dials",
	},
	{
		from: "./discovery/static/...", to: "./...", allow: []string{"./discovery", "./discovery/static/...", "./verify"},
		reason: "a mechanism knows the contract only, not its siblings nor who dials",
	},
	{
		from: "./discovery/dht/...", to: "./...", allow: []string{"./discovery", "./discovery/dht/...", "./verify"},
		reason: "a mechanism knows the contract only, not its siblings nor who dials",
	},
	{
		from: "./p2p/...", to: "./...", allow: []string{"./p2p/...", "./discovery", "./verify", "./binarycache", "./internal/throttle", "./internal/beat"},
		reason: "the peer wire serves what it is given: with no store and no finder in reach it cannot forward for others",
	},
	{
		from: "./substituter/...", to: "./...", allow: []string{"./substituter/...", "./verify", "./binarycache", "./internal/beat"},
		reason: "it declares the small interfaces it needs; whether a source is a peer, a store or upstream is cmd's business",
	},
	{
		from: "./status/...", to: "./...", allow: []string{"./status/...", "./verify", "./internal/beat"},
		reason: "what an operator sees is handed in, not fetched from the inside of others",
	},
	{
		from: "./doctor/...", to: "./...", allow: []string{"./doctor/..."},
		reason: "it judges what it is handed and what anybody can see from here; it reaches into nobody",
	},
	{
		from: "./internal/throttle", to: "./...",
		reason: "a rate is a rate, whoever is held to it",
	},
	{
		from: "./supervise/...", to: "./...", allow: []string{"./supervise/..."},
		reason: "what holds the port while the agent dies must have nothing in it that could die too",
	},
	{
		from: "./standby/...", to: "./...", allow: []string{"./standby/..."},
		reason: "what answers while the agent is dead has nothing in it that could die too",
	},
	{
		from: "./...", butNot: []string{"./cmd/..."}, to: "./cmd/...",
		reason: "cmd knows everybody, nobody knows cmd",
	},
	{from: "./...", to: "./test/...", butNot: []string{"./test/..."}, reason: "tests are nobody's library"},
	{from: "./...", to: "./internal/archtest", tests: true, reason: "it is a test"},
	{
		from: "./...", butNot: []string{"./p2p/...", "./discovery/dht/..."}, to: "github.com/libp2p/...",
		reason: "libp2p's types stay inside p2p and discovery/dht; all others, cmd too, have ids and addresses as text",
	},
	{
		from: "./...", butNot: []string{"./store/..."}, to: "zombiezen.com/go/sqlite/...",
		reason: "one package opens the Nix database, because one process must not open its files beside SQLite",
	},
	{
		from: "./...", to: "github.com/nix-community/go-nix/pkg/sqlite/...", tests: true,
		reason: "it pulls in mattn/go-sqlite3, which is cgo and registers the same driver name as others",
	},
	{from: "./...", to: "github.com/mattn/go-sqlite3/...", tests: true, reason: "it is cgo"},
	{from: "./...", to: "C", tests: true, reason: "CGO_ENABLED=0 must build everything"},
	{
		from: "./...", butNot: []string{"./internal/metered"}, to: "github.com/godbus/dbus/...",
		reason: "one package listens to NetworkManager, and says nothing on the bus",
	},
	{
		from: "./internal/metered", to: "./...",
		reason: "it tells what another program says; what follows from that is cmd's business",
	},
}

// places are the folders that packages may stand in. A new one needs its rule above first.
var places = []string{
	"./cmd/...", "./substituter/...", "./status/...", "./p2p/...", "./discovery/...", "./upstream/...", "./store/...",
	"./binarycache/...", "./config/...", "./doctor/...", "./standby/...", "./supervise/...", "./verify/...", "./internal/...", "./test/...",
}
