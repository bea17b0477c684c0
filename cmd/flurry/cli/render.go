package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// clean replaces control characters: what peers call themselves must not steer a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// isTerminal tells whether w shows colours and bars.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// palette colours text, or does not.
type palette struct{ on bool }

// palette follows https://no-color.org and what standard output is.
func (a *App) palette() palette {
	return palette{isTerminal(a.Out) && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"}
}

func (p palette) paint(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p palette) bold(s string) string   { return p.paint("1", s) }
func (p palette) dim(s string) string    { return p.paint("2", s) }
func (p palette) red(s string) string    { return p.paint("31", s) }
func (p palette) green(s string) string  { return p.paint("32", s) }
func (p palette) yellow(s string) string { return p.paint("33", s) }

// cell is one field of a table. paint, if any, is applied after alignment.
type cell struct {
	text  string
	right bool
	paint func(string) string
}

// printTable aligns columns two spaces apart, leaves empty columns out, and leaves no blanks at the
// ends of lines.
func printTable(w io.Writer, rows [][]cell) {
	var width []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range rows {
		line, blanks := "", 0
		for i, c := range row {
			if width[i] == 0 && i > 0 {
				continue
			}
			pad := width[i] - utf8.RuneCountInString(c.text)
			if c.right {
				blanks += pad
				pad = 0
			}
			if c.text != "" {
				text := c.text
				if c.paint != nil {
					text = c.paint(text)
				}
				line += strings.Repeat(" ", blanks) + text
				blanks = 0
			}
			blanks += pad + 2
		}
		fmt.Fprintln(w, line)
	}
}

// bytesText is n in decimal units with three digits, as Nix and download tools show sizes.
func bytesText(n int64) string { return scaled(float64(n), "B") }

func scaled(v float64, unit string) string {
	const prefixes = " kMGTPE"
	i := 0
	for v >= 999.5 && i < len(prefixes)-1 {
		v /= 1000
		i++
	}
	text := strconv.FormatFloat(v, 'f', 0, 64)
	if i > 0 && v < 9.995 {
		text = strconv.FormatFloat(v, 'f', 2, 64)
	} else if i > 0 && v < 99.95 {
		text = strconv.FormatFloat(v, 'f', 1, 64)
	}
	return text + " " + strings.TrimSpace(prefixes[i:i+1]) + unit
}

// rate is bytes per second, "" if unknown.
func rate(perSecond float64) string {
	if perSecond <= 0 {
		return ""
	}
	return scaled(perSecond, "B/s")
}

// millis is a round trip, "" if unknown.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 9.95:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// duration is d in its two largest units.
func duration(d time.Duration) string {
	s := int64(d / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}
