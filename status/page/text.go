package page

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/flurry-nix/flurry/status"
)

const maxText = 160 // runes of one untrusted text that are shown

// clean makes untrusted text harmless to what stands beside it: no control or direction characters, no
// piles of combining marks, no endless length. html/template does the rest.
func clean(s string) string {
	var b strings.Builder
	n, marks := 0, 0
	for _, r := range s {
		if n++; n > maxText {
			b.WriteRune('…')
			break
		}
		if unicode.Is(unicode.M, r) {
			if marks++; marks > 2 {
				continue
			}
		} else {
			marks = 0
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// bytesText is n in a unit that keeps it below a thousand, as the command line writes it.
func bytesText(n int64) string { return scaled(float64(n), "B") }

func scaled(v float64, unit string) string {
	const prefixes = " kMGTPE"
	i := 0
	for v >= 999.5 && i < len(prefixes)-1 {
		v /= 1000
		i++
	}
	digits := 0
	if i > 0 && v < 9.995 {
		digits = 2
	} else if i > 0 && v < 99.95 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + "\u00a0" + strings.TrimSpace(prefixes[i:i+1]) + unit
}

func rateText(perSecond float64) string {
	if perSecond <= 0 {
		return "–"
	}
	return scaled(perSecond, "B/s")
}

func millis(ms float64) string {
	switch {
	case ms <= 0:
		return "–"
	case ms < 9.95:
		return strconv.FormatFloat(ms, 'f', 1, 64) + "\u00a0ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + "\u00a0ms"
}

// ago is a stretch of time in words that do not change every second.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < time.Hour:
		return status.Count(int(d/time.Minute), "minute")
	case d < 48*time.Hour:
		return status.Count(int(d/time.Hour), "hour")
	}
	return status.Count(int(d/(24*time.Hour)), "day")
}

// percent never says 0 or 100 of what is only nearly so.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "0\u00a0%"
	}
	p := int64(float64(part)/float64(whole)*100 + 0.5)
	if part > 0 && p == 0 {
		p = 1
	}
	if part < whole && p == 100 {
		p = 99
	}
	return strconv.FormatInt(p, 10) + "\u00a0%"
}
