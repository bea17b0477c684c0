package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// nixSettings are those of Nix's settings that matter here, with where they were set.
type nixSettings struct {
	substituters, keys, trustedSubstituters, trustedUsers []string
	store                                                 string
	files                                                 []nixFile // that were read
	problems                                              []string  // such as an include that is not there
}

// nixFile is a file of Nix's configuration.
type nixFile struct {
	name    string
	changed time.Time // of its content or of the link that names it
}

func defaultNixSettings() nixSettings {
	return nixSettings{
		substituters: []string{"https://cache.nixos.org/"},
		keys:         []string{"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="},
		trustedUsers: []string{"root"},
		store:        "auto",
	}
}

const maxIncludes = 20 // deep; Nix has no limit, and no sense in more

// systemFile is what Nix reads first, and a nix-daemon alone.
func systemFile(env func(string) string) string {
	dir := env("NIX_CONF_DIR")
	if dir == "" {
		dir = "/etc/nix"
	}
	return filepath.Join(dir, "nix.conf")
}

// userFiles are read after it, later ones winning, as Nix does it: NIX_USER_CONF_FILES, or nix/nix.conf
// below XDG_CONFIG_HOME and XDG_CONFIG_DIRS, where earlier directories win.
func userFiles(env func(string) string) (out []string) {
	if list, ok := env("NIX_USER_CONF_FILES"), env("NIX_USER_CONF_FILES") != ""; ok {
		for _, f := range strings.Split(list, ":") {
			out = append([]string{f}, out...)
		}
		return out
	}
	home := env("XDG_CONFIG_HOME")
	if home == "" {
		home = filepath.Join(env("HOME"), ".config")
	}
	dirs := env("XDG_CONFIG_DIRS")
	if dirs == "" {
		dirs = "/etc/xdg"
	}
	for _, d := range append([]string{home}, strings.Split(dirs, ":")...) {
		out = append([]string{filepath.Join(d, "nix", "nix.conf")}, out...)
	}
	return out
}

// readNixSettings is Nix's view: of a nix-daemon (the system's file only), or of who calls it.
func readNixSettings(env func(string) string, daemon bool) nixSettings {
	s := defaultNixSettings()
	s.readFile(systemFile(env), 0)
	if daemon {
		return s
	}
	for _, f := range userFiles(env) {
		s.readFile(f, 0)
	}
	s.apply(env("NIX_CONFIG"), "NIX_CONFIG", 0)
	return s
}

func (s *nixSettings) readFile(name string, depth int) {
	b, err := os.ReadFile(name)
	if err != nil {
		if depth > 0 || !errors.Is(err, fs.ErrNotExist) {
			s.problems = append(s.problems, oneLine(err))
		}
		return
	}
	f := nixFile{name: name}
	for _, stat := range []func(string) (fs.FileInfo, error){os.Stat, os.Lstat} {
		if info, err := stat(name); err == nil && info.ModTime().After(f.changed) {
			f.changed = info.ModTime()
		}
	}
	s.files = append(s.files, f)
	s.apply(string(b), name, depth)
}

// apply takes a configuration's text over, as Nix's AbstractConfig does: lines "name = value", comments
// from #, include and !include relative to the file.
func (s *nixSettings) apply(text, from string, depth int) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
			continue
		case words[0] == "include" || words[0] == "!include":
			name := words[1]
			if !filepath.IsAbs(name) {
				name = filepath.Join(filepath.Dir(from), name)
			}
			if _, err := os.Stat(name); err != nil && words[0] == "!include" || depth >= maxIncludes {
				continue
			}
			s.readFile(name, depth+1)
		case words[1] == "=":
			s.set(words[0], words[2:])
		}
	}
}

func (s *nixSettings) set(name string, value []string) {
	name, extra := strings.CutPrefix(name, "extra-")
	var list *[]string
	switch name {
	case "substituters", "binary-caches":
		list = &s.substituters
	case "trusted-public-keys", "binary-cache-public-keys":
		list = &s.keys
	case "trusted-substituters", "trusted-binary-caches":
		list = &s.trustedSubstituters
	case "trusted-users":
		list = &s.trustedUsers
	case "store":
		s.store = strings.Join(value, " ")
		return
	default:
		return
	}
	if !extra {
		*list = nil
	}
	*list = append(*list, value...)
}
