package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// maxFile bounds the configuration file, in bytes; the example with every key is a hundredth of it.
const maxFile = 1 << 20

// Load reads the configuration: the file at path, or at [DefaultPath] if path is empty and that file
// exists; then environ ("NAME=value", as os.Environ returns it); then flags, which [AddFlags]
// defined (nil: none). If anything is wrong, the Config is nil and the problems are all there are.
func Load(path string, flags *pflag.FlagSet, environ []string) (*Config, []Problem) {
	name := path
	if name == "" {
		name = DefaultPath
	}
	data, err := readFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == "":
		return load(nil, "", flags, environ)
	case err != nil:
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return nil, []Problem{{Where: name, What: "cannot read the configuration: " + err.Error(),
			Remedy: "name a readable file with --config"}}
	}
	return load(data, name, flags, environ)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %s", Size(maxFile))
	}
	return data, err
}

// loader gathers values from the layers, weakest first.
type loader struct {
	c         *Config
	keys      map[string]*key
	upstreams []draft
	problems  []Problem
}

// draft is an upstream in the making: what was said about it, and where.
type draft struct {
	Upstream
	at  origin
	set map[string]origin // by the key's last part
}

func load(data []byte, file string, flags *pflag.FlagSet, environ []string) (*Config, []Problem) {
	l := &loader{c: &Config{Path: file, origins: map[string]origin{}}, keys: map[string]*key{}}
	for _, k := range table() {
		l.keys[k.name] = k
		if !k.isUpstream() {
			d := newDecoder("default", []byte(k.name+" = "+k.def))
			d.decode()
			l.set(k, d.sets[0].val, nil)
		}
	}
	l.c.origins = map[string]origin{}
	if file != "" {
		l.file(file, data)
	}
	l.overrides(flags, environ)
	l.finishUpstreams()
	l.c.State.Dir = l.stateDir(environ)
	if len(l.problems) == 0 {
		l.problems = l.c.checkTogether()
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return l.c, nil
}

func (l *loader) add(p Problem) { l.problems = append(l.problems, p) }

// set stores one value and reports what is wrong with it.
func (l *loader) set(k *key, v raw, u *draft) {
	var up *Upstream
	if u != nil {
		up = &u.Upstream
		u.set[k.last()] = v.at
	} else {
		l.c.origins[k.name] = v.at
	}
	at := v.at
	err := v.store(k.field(l.c, up), k.clean)
	if e, ok := errors.AsType[*atError](err); ok {
		at, err = e.at, e.err
	}
	if err == nil && k.check != nil {
		err = k.check(l.c)
	}
	if err != nil {
		l.add(problemOf(at, k.name, err))
	}
}

func (l *loader) file(name string, data []byte) {
	d := newDecoder(name, data)
	d.decode()
	l.problems = append(l.problems, d.problems...)
	for _, at := range d.upstreams {
		l.upstreams = append(l.upstreams, draft{at: at, set: map[string]origin{}})
	}
	for _, s := range d.sets {
		k := l.keys[s.key]
		if k.isUpstream() {
			l.set(k, s.val, &l.upstreams[s.upstream])
		} else {
			l.set(k, s.val, nil)
		}
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int { return a.line - b.line })
	if d.noUpstream.file != "" {
		l.add(Problem{Where: d.noUpstream.String(), Key: "upstream", What: "an agent without a central cache has no key to trust",
			Remedy: "leave it out to have cache.nixos.org, or list caches with their keys"})
	}
}

// overrides applies the environment and the flags. What they say about upstreams becomes one draft
// that replaces the file's list (or several, where several URLs were given); without a URL it
// completes the only one there is.
func (l *loader) overrides(flags *pflag.FlagSet, environ []string) {
	values := map[string][]raw{} // by key: environment, then flag
	env := l.environ(environ)
	for _, k := range table() {
		if s, ok := env[k.env()]; ok {
			values[k.name] = append(values[k.name], raw{kind: rawText, text: fromShell(k, s), at: origin{name: k.env()}})
		}
		if s, ok := flagText(flags, k); ok {
			values[k.name] = append(values[k.name], raw{kind: rawText, text: fromShell(k, s), at: origin{name: "--" + k.flag()}})
		}
	}
	var drafts []*draft
	for _, k := range table() {
		for _, v := range values[k.name] {
			if !k.isUpstream() {
				l.set(k, v, nil)
				continue
			}
			if k.last() == "url" {
				drafts = nil // a flag's URLs replace the environment's
				for u := range strings.SplitSeq(v.text, ",") {
					drafts = append(drafts, &draft{at: v.at, set: map[string]origin{}})
					one := v
					one.text = strings.TrimSpace(u)
					l.set(k, one, drafts[len(drafts)-1])
				}
				continue
			}
			if drafts == nil {
				if drafts = l.onlyUpstream(k, v); drafts == nil {
					continue
				}
			}
			for _, d := range drafts {
				l.set(k, v, d)
			}
		}
	}
	if drafts != nil {
		l.upstreams = nil
		for _, d := range drafts {
			l.upstreams = append(l.upstreams, *d)
		}
	}
}

func (l *loader) onlyUpstream(k *key, v raw) []*draft {
	switch len(l.upstreams) {
	case 0:
		d := &draft{at: v.at, set: map[string]origin{}}
		d.URL, d.set["url"] = DefaultUpstreamURL, v.at
		return []*draft{d}
	case 1:
		return []*draft{&l.upstreams[0]}
	}
	l.add(Problem{Where: v.at.String(), Key: k.name, What: "the file lists several upstreams",
		Remedy: "say which is meant, with --upstream-url"})
	return nil
}

// fromShell makes paths given on a command line or in the environment absolute, as users expect there.
func fromShell(k *key, s string) string {
	isPath := k.name == "state.dir" || k.section() == "store" || strings.HasSuffix(k.name, "_file")
	if isPath && s != "" {
		if abs, err := filepath.Abs(s); err == nil {
			return abs
		}
	}
	return s
}

// environ returns the variables that begin with FLURRY_, and reports those that look like a
// mistyped key. Others may belong to somebody else, such as a container's FLURRY_SERVICE_HOST.
func (l *loader) environ(environ []string) map[string]string {
	known := []string{"FLURRY_CONFIG", "FLURRY_SOCKET", "FLURRY_SUPERVISED"}
	for _, k := range table() {
		known = append(known, k.env())
	}
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "FLURRY_") {
			continue
		}
		env[name] = value
		if slices.Contains(known, name) {
			continue
		}
		if near := suggest(name, known); len(near) > 0 {
			l.add(Problem{Where: name, What: "unknown variable", Remedy: "did you mean " + strings.Join(near, " or ") + "?"})
		}
	}
	return env
}

func upstreamOrigin(i int, last string) string { return "upstream." + strconv.Itoa(i) + "." + last }

// finishUpstreams fills in what depends on the URL and checks the list as a whole.
func (l *loader) finishUpstreams() {
	if len(l.upstreams) == 0 {
		l.upstreams = []draft{{Upstream: Upstream{URL: DefaultUpstreamURL}, set: map[string]origin{"url": {}}}}
	}
	seen := map[string]bool{}
	for i := range l.upstreams {
		d := &l.upstreams[i]
		if _, ok := d.set["url"]; !ok {
			l.add(Problem{Where: d.at.String(), Key: "upstream.url", What: "missing", Remedy: `add url = "https://…"`})
			continue
		}
		central := isCentral(d.URL)
		if _, ok := d.set["public"]; !ok {
			d.Public = central
		}
		if _, ok := d.set["keys"]; !ok && central {
			d.Keys = []string{DefaultUpstreamKey}
		} else if len(d.Keys) == 0 && d.URL != "" && !l.complained(d.set["keys"], "upstream.keys") {
			l.add(Problem{Where: d.set["url"].String(), Key: "upstream.keys", What: "no key is given for " + d.URL + ", so nothing from it could be trusted",
				Remedy: `add keys = ["name:base64"], as in nix.conf's trusted-public-keys`})
		}
		if d.URL != "" && seen[d.URL] {
			l.add(Problem{Where: d.set["url"].String(), Key: "upstream.url", What: d.URL + " is listed twice", Remedy: "join the two"})
		}
		seen[d.URL] = true
		for last, at := range d.set {
			l.c.origins[upstreamOrigin(i, last)] = at
		}
		l.c.Upstreams = append(l.c.Upstreams, d.Upstream)
	}
}

// complained tells whether the value written at at was already reported.
func (l *loader) complained(at origin, key string) bool {
	return slices.ContainsFunc(l.problems, func(p Problem) bool { return p.Key == key && at != origin{} })
}

func isCentral(cache string) bool {
	u, err := url.Parse(cache)
	return err == nil && u.Hostname() == "cache.nixos.org"
}

// stateDir is the configured directory, else what systemd, else what the XDG base directory
// specification says.
func (l *loader) stateDir(environ []string) string {
	if l.c.State.Dir != "" {
		return l.c.State.Dir
	}
	dir := DefaultStateDir(environ)
	if dir == "" && !l.complained(l.c.origins["state.dir"], "state.dir") {
		l.add(Problem{Key: "state.dir", What: "neither STATE_DIRECTORY nor XDG_STATE_HOME nor HOME is set to an absolute path",
			Remedy: "name a directory with --state-dir"})
	}
	return dir
}

// DefaultStateDir returns where state is kept unless state.dir says otherwise, "" if environ does
// not tell.
func DefaultStateDir(environ []string) string {
	env := func(name string) string {
		for _, e := range slices.Backward(environ) {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	first, _, _ := strings.Cut(env("STATE_DIRECTORY"), ":") // systemd may list several
	for _, c := range [][]string{{first}, {env("XDG_STATE_HOME"), "flurry"}, {env("HOME"), ".local/state/flurry"}} {
		if filepath.IsAbs(c[0]) {
			return filepath.Join(c...)
		}
	}
	return ""
}
