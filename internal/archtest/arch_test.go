package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/flurry-nix/flurry"

// edge is one import in one file.
type edge struct {
	from, to string // as rules write them
	test     bool   // the file is a test
	file     string
}

func TestImportsGoDownOnly(t *testing.T) {
	edges := readTree(t, moduleRoot(t))
	if len(edges) < 100 {
		t.Fatalf("only %d imports found", len(edges))
	}
	placed := make(map[string]bool)
	for _, e := range edges {
		if !placed[e.from] && !slices.ContainsFunc(places, func(p string) bool { return matches(p, e.from) }) {
			t.Errorf("package %s has no place in the house; give it a rule", e.from)
		}
		placed[e.from] = true
		for _, r := range rules {
			if r.forbids(e) {
				t.Errorf("%s: %s must not import %s: %s", e.file, e.from, e.to, r.reason)
			}
		}
	}
}

// TestTheRulesBite keeps the table from becoming a decoration: each of these must be refused, each of
// those allowed.
func TestTheRulesBite(t *testing.T) {
	forbidden := func(e edge) bool {
		return slices.ContainsFunc(rules, func(r rule) bool { return r.forbids(e) })
	}
	for _, e := range []edge{
		{from: "./verify", to: "./store"},
		{from: "./verify", to: "./config", test: true},
		{from: "./verify", to: "github.com/klauspost/compress/zstd"},
		{from: "./verify", to: "github.com/klauspost/compress/zstd", test: true},
		{from: "./verify", to: "pgregory.net/rapid"},
		{from: "./verify", to: "os"},
		{from: "./verify", to: "net/http"},
		{from: "./verify", to: "time"},
		{from: "./config", to: "./store"},
		{from: "./store", to: "./p2p"},
		{from: "./store/nar", to: "./store"},
		{from: "./upstream", to: "./store"},
		{from: "./discovery", to: "./discovery/mdns"},
		{from: "./discovery/mdns", to: "./discovery/static"},
		{from: "./discovery/dht", to: "./p2p"},
		{from: "./p2p", to: "./store"},
		{from: "./p2p", to: "./substituter"},
		{from: "./p2p", to: "./discovery/mdns"},
		{from: "./substituter", to: "./p2p"},
		{from: "./substituter", to: "./discovery"},
		{from: "./substituter", to: "./upstream"},
		{from: "./status", to: "./p2p"},
		{from: "./store", to: "./cmd/flurry"},
		{from: "./substituter", to: "github.com/libp2p/go-libp2p/core/peer"},
		{from: "./cmd/flurry", to: "github.com/libp2p/go-libp2p"},
		{from: "./discovery/static", to: "github.com/libp2p/go-libp2p/core/peer"},
		{from: "./p2p", to: "zombiezen.com/go/sqlite"},
		{from: "./store", to: "github.com/nix-community/go-nix/pkg/sqlite", test: true},
		{from: "./cmd/flurry", to: "C"},
		{from: "./p2p", to: "github.com/godbus/dbus/v5"},
	} {
		if !forbidden(e) {
			t.Errorf("%s may import %s (test: %v)", e.from, e.to, e.test)
		}
	}
	for _, e := range []edge{
		{from: "./verify", to: "github.com/nix-community/go-nix/pkg/nixbase32"},
		{from: "./verify", to: "./verify", test: true},
		{from: "./verify", to: "os", test: true},
		{from: "./store", to: "zombiezen.com/go/sqlite/sqlitex"},
		{from: "./store", to: "./store/nar"},
		{from: "./p2p", to: "./discovery"},
		{from: "./p2p", to: "github.com/libp2p/go-libp2p"},
		{from: "./p2p", to: "./store", test: true},
		{from: "./discovery/dht", to: "github.com/libp2p/go-libp2p-kad-dht"},
		{from: "./cmd/flurry", to: "./discovery/mdns"},
		{from: "./storefront", to: "./verify"}, // a longer name is another package
	} {
		if forbidden(e) {
			t.Errorf("%s may not import %s (test: %v)", e.from, e.to, e.test)
		}
	}
}

func TestEveryRuleHasAReason(t *testing.T) {
	for _, r := range rules {
		if r.reason == "" || r.from == "" || r.to == "" {
			t.Errorf("%+v", r)
		}
	}
}

func (r rule) forbids(e edge) bool {
	matchesE := func(name string) func(string) bool { return func(p string) bool { return matches(p, name) } }
	return (r.tests || !e.test) && matches(r.from, e.from) && matches(r.to, e.to) &&
		!slices.ContainsFunc(r.butNot, matchesE(e.from)) && !slices.ContainsFunc(r.allow, matchesE(e.to))
}

func matches(pattern, name string) bool {
	if pattern == "*" {
		first, _, _ := strings.Cut(name, "/")
		return strings.Contains(first, ".") // which no package of the standard library has
	}
	base, below := strings.CutSuffix(pattern, "/...")
	return name == base || below && strings.HasPrefix(name, base+"/")
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
}

// readTree reads the imports of every Go file, whatever system or build tag it is for.
func readTree(t *testing.T, root string) []edge {
	t.Helper()
	var edges []edge
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != root && (name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		f, err := parser.ParseFile(fset, file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if rest, ours := strings.CutPrefix(to+"/", module+"/"); ours {
				to = "./" + strings.TrimSuffix(rest, "/")
			}
			edges = append(edges, edge{"./" + path.Dir(rel), to, strings.HasSuffix(name, "_test.go"), rel})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return edges
}
