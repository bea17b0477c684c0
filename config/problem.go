package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake in the configuration.
type Problem struct {
	Where  string // FILE:LINE, --flag, or the environment variable; "" if nowhere in particular
	Key    string // dotted, such as substituter.listen; "" if it concerns no key
	What   string // what is wrong
	Remedy string // what to do

	line int // in the file, for sorting
}

// Error implements error: one line, "where: key: what; remedy".
func (p Problem) Error() string {
	var b strings.Builder
	for _, s := range []string{p.Where, p.Key} {
		if s != "" {
			b.WriteString(s + ": ")
		}
	}
	b.WriteString(p.What)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return oneLine(b.String())
}

// oneLine keeps control characters of a hostile or broken file off the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// origin is where a value was written.
type origin struct {
	file string
	line int    // from 1
	name string // flag or environment variable, where there is no file
}

// String returns FILE:LINE or the name.
func (o origin) String() string {
	if o.file != "" {
		return fmt.Sprintf("%s:%d", o.file, o.line)
	}
	return o.name
}

// badValue is why a value was refused, and what to write instead.
type badValue struct{ what, remedy string }

// Error implements error.
func (e *badValue) Error() string { return e.what + "; " + e.remedy }

func bad(remedy, format string, a ...any) error {
	return &badValue{what: fmt.Sprintf(format, a...), remedy: remedy}
}

func problemOf(at origin, key string, err error) Problem {
	p := Problem{Where: at.String(), Key: key, What: err.Error(), line: at.line}
	if b, ok := errors.AsType[*badValue](err); ok {
		p.What, p.Remedy = b.what, b.remedy
	}
	return p
}

// suggest returns the candidates that were probably meant: those few edits away, else those with
// the same last part.
func suggest(word string, candidates []string) []string {
	best := max(2, len(word)/5) + 1 // that many edits are no longer a slip
	var out []string
	for _, c := range candidates {
		d := distance(word, c)
		if d < best {
			best, out = d, nil
		}
		if d == best && d <= max(2, len(word)/5) {
			out = append(out, c)
		}
	}
	if out == nil {
		last := word[strings.LastIndexByte(word, '.')+1:]
		for _, c := range candidates {
			if strings.HasSuffix(c, "."+last) {
				out = append(out, c)
			}
		}
	}
	slices.Sort(out)
	return out
}

// didYouMean turns suggestions into a remedy.
func didYouMean(word string, candidates []string, otherwise string) string {
	if s := suggest(word, candidates); len(s) > 0 {
		return "did you mean " + strings.Join(s, " or ") + "?"
	}
	return otherwise
}

// distance counts the insertions, deletions and substitutions between a and b (Levenshtein).
// Words longer than a key can be are only as near as their excess allows.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
