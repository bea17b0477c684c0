package upstream

import (
	"errors"
	"fmt"
	"strings"
)

// credentials are a name and a password; caches with tokens often want no name.
type credentials struct{ login, password string }

// readNetrc returns what a netrc file says of host, a name without port. Format: as curl reads it, which
// is what Nix's own netrc-file is for. Errors never quote the file.
func readNetrc(file, host string) (credentials, error) {
	b, err := readSecret(file)
	if err != nil {
		return credentials{}, err
	}
	found, ok, err := parseNetrc(string(b), host)
	if err != nil {
		return credentials{}, err
	}
	if !ok {
		return credentials{}, fmt.Errorf("no entry for %s; add a line \"machine %s password …\"", host, host)
	}
	for _, s := range []string{found.login, found.password} {
		if !validHeader("Authorization", s) {
			return credentials{}, fmt.Errorf("the entry for %s has characters that no header can hold", host)
		}
	}
	if strings.Contains(found.login, ":") {
		return credentials{}, fmt.Errorf("the login for %s has a colon, which basic authentication cannot say", host)
	}
	return found, nil
}

// parseNetrc finds the first entry for host, else the default one.
func parseNetrc(text, host string) (found credentials, ok bool, err error) {
	words, err := netrcWords(text)
	if err != nil {
		return credentials{}, false, err
	}
	var current *credentials // nil: an entry that is not for host
	for i := 0; i < len(words); i++ {
		key := words[i]
		if key == "default" {
			if ok {
				return found, true, nil
			}
			current, ok = &found, true
			continue
		}
		if i++; i == len(words) {
			return credentials{}, false, fmt.Errorf("it ends after a keyword that wants a value")
		}
		switch value := words[i]; key {
		case "machine":
			if ok { // the entry is complete
				return found, true, nil
			}
			if current = nil; strings.EqualFold(value, host) {
				current, ok = &found, true
			}
		case "login":
			if current != nil {
				current.login = value
			}
		case "password":
			if current != nil {
				current.password = value
			}
		case "account":
		default:
			return credentials{}, false, errors.New("not a netrc file; want \"machine HOST login NAME password SECRET\"")
		}
	}
	return found, ok, nil
}

// netrcWords splits at blanks, honours "quoted \" words", and leaves out comments and macros.
func netrcWords(text string) (words []string, err error) {
	lines := strings.Split(text, "\n")
	for n := 0; n < len(lines); n++ {
		rest := lines[n]
		for {
			rest = strings.TrimLeft(rest, " \t\r\f\v")
			if rest == "" || rest[0] == '#' {
				break
			}
			var word string
			if rest[0] == '"' {
				if word, rest, err = quoted(rest[1:]); err != nil {
					return nil, fmt.Errorf("line %d: %w", n+1, err)
				}
			} else {
				end := strings.IndexAny(rest, " \t\r\f\v")
				if end < 0 {
					end = len(rest)
				}
				word, rest = rest[:end], rest[end:]
			}
			if word == "macdef" { // up to an empty line
				for n+1 < len(lines) && strings.TrimSpace(lines[n+1]) != "" {
					n++
				}
				break
			}
			words = append(words, word)
		}
	}
	return words, nil
}

func quoted(s string) (word, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], nil
		case c == '\\' && i+1 < len(s):
			i++
			if e := strings.IndexByte("nrt", s[i]); e >= 0 {
				b.WriteByte("\n\r\t"[e])
			} else {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("a quoted word has no end")
}
