package config

import (
	"log/slog"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. Written "8MiB", "1.5GB", "0", or a bare number of bytes.
type Size int64

// Rate is a number of bytes per second, 0 for no limit. Written "50Mbit/s", "6MB/s", "unlimited".
type Rate int64

type unit struct {
	name  string
	bytes float64
}

var byteUnits = []unit{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

var bitUnits = []unit{{"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8}, {"bit", 1.0 / 8}}

const (
	sizeRemedy = `write a size such as "8MiB" or "2GB"`
	rateRemedy = `write a rate such as "50Mbit/s" or "6MB/s", or "unlimited"`
	timeRemedy = `write a time such as "2s", "10m", "12h" or "7d"`
)

// String returns the size in the largest unit that loses nothing.
func (s Size) String() string {
	for _, u := range byteUnits {
		if n := int64(u.bytes); s != 0 && int64(s)%n == 0 {
			return strconv.FormatInt(int64(s)/n, 10) + u.name
		}
	}
	return "0B"
}

// String returns the rate in the largest unit that loses nothing.
func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	for _, u := range bitUnits[:3] {
		if n := int64(u.bytes); int64(r)%n == 0 {
			return strconv.FormatInt(int64(r)/n, 10) + u.name + "/s"
		}
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

// ParseSize reads a Size.
func ParseSize(s string) (Size, error) {
	v, ok := parseQuantity(s, byteUnits, true)
	if !ok {
		return 0, bad(sizeRemedy, "%.40q is not a size", s)
	}
	return Size(v), nil
}

// ParseRate reads a Rate.
func ParseRate(s string) (Rate, error) {
	if s == "unlimited" || s == "0" {
		return 0, nil
	}
	amount, ok := strings.CutSuffix(s, "/s")
	if !ok {
		return 0, bad(rateRemedy, "%.40q is not a rate", s)
	}
	v, ok := parseQuantity(amount, bitUnits, false)
	if !ok {
		v, ok = parseQuantity(amount, byteUnits, false)
	}
	if !ok {
		return 0, bad(rateRemedy, "%.40q is not a rate", s)
	}
	if v == 0 {
		return 0, bad(rateRemedy, "%.40q is less than one byte a second", s)
	}
	return Rate(v), nil
}

// ParseDuration reads a time of at least 0: Go's notation, and whole days.
func ParseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // 2^16 days are 179 years
		if err != nil {
			return 0, bad(timeRemedy, "%.40q is not a time", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, bad(timeRemedy, "%.40q is not a time", s)
	}
	if d < 0 {
		return 0, bad(timeRemedy, "%.40q is negative", s)
	}
	return d, nil
}

// parseQuantity reads a decimal number and one of the units; bare allows a number without unit.
func parseQuantity(s string, units []unit, bare bool) (int64, bool) {
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	factor := 1.0
	if end >= 0 {
		name := strings.TrimPrefix(s[end:], " ")
		s, factor = s[:end], 0
		for _, u := range units {
			if u.name == name {
				factor = u.bytes
			}
		}
	} else if !bare {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || factor == 0 || v*factor >= math.MaxInt64 {
		return 0, false
	}
	return int64(v * factor), true
}

// rawKind is what a value was in its source.
type rawKind uint8

const (
	rawText    rawKind = iota // a flag's or variable's text: may become anything
	rawString                 // a TOML string
	rawBool                   // text is true or false
	rawInteger                // text is decimal
	rawList
	rawOther // a table, date, float: no key takes it
)

// raw is a value that nobody has interpreted yet.
type raw struct {
	kind rawKind
	text string
	list []raw
	at   origin
}

// store parses v into the field that dst points to. clean, if any, checks and normalises a string,
// or each string of a list.
func (v raw) store(dst any, clean func(string) (string, error)) (err error) {
	switch dst := dst.(type) {
	case *[]string:
		return v.storeList(func(s string) error {
			if clean != nil {
				s, err = clean(s)
			}
			*dst = append(*dst, s)
			return err
		}, func() { *dst = nil })
	case *[]netip.Prefix:
		return v.storeList(func(s string) error {
			p, err := parsePrefix(s)
			*dst = append(*dst, p)
			return err
		}, func() { *dst = nil })
	case *bool:
		if v.kind == rawBool || v.kind == rawText {
			if *dst, err = strconv.ParseBool(v.text); err == nil {
				return nil
			}
		}
		return bad("write true or false, without quotes", "%s is neither true nor false", v.describe())
	case *int:
		if v.kind == rawInteger || v.kind == rawText {
			if *dst, err = strconv.Atoi(v.text); err == nil {
				return nil
			}
		}
		return bad("write a whole number, without quotes", "%s is not a whole number", v.describe())
	}
	return v.storeScalar(dst, clean)
}

func (v raw) storeScalar(dst any, clean func(string) (string, error)) (err error) {
	if _, ok := dst.(*Size); ok && v.kind == rawInteger {
		v.kind = rawString // a bare number of bytes
	}
	if _, ok := dst.(*Metered); ok && v.kind == rawBool {
		v.kind = rawString
	}
	if v.kind != rawString && v.kind != rawText {
		return bad(`write a string: "…"`, "%s is not a string", v.describe())
	}
	switch dst := dst.(type) {
	case *string:
		if *dst = v.text; clean != nil {
			*dst, err = clean(v.text)
		}
	case *Size:
		*dst, err = ParseSize(v.text)
	case *Rate:
		*dst, err = ParseRate(v.text)
	case *Metered:
		*dst, err = parseMetered(v.text)
	case *time.Duration:
		*dst, err = ParseDuration(v.text)
	case *slog.Level:
		*dst, err = parseLevel(v.text)
	default:
		panic("config: the key table holds a type that store does not know")
	}
	return err
}

// storeList gives every element to add. One string stands for a list of one; a flag or variable is
// split at commas, so that an empty one is an empty list.
func (v raw) storeList(add func(string) error, reset func()) error {
	reset()
	switch v.kind {
	case rawText:
		for s := range strings.SplitSeq(v.text, ",") {
			if s = strings.TrimSpace(s); s != "" {
				if err := add(s); err != nil {
					return err
				}
			}
		}
		return nil
	case rawString:
		return add(v.text)
	case rawList:
		for _, e := range v.list {
			if e.kind != rawString && e.kind != rawText {
				return &atError{e.at, bad(`write a list of strings: ["…", "…"]`, "%s is not a string", e.describe())}
			}
			if err := add(e.text); err != nil {
				return &atError{e.at, err}
			}
		}
		return nil
	}
	return bad(`write a list of strings: ["…", "…"]`, "%s is not a list", v.describe())
}

// atError moves an error to the element of a list that caused it.
type atError struct {
	at  origin
	err error
}

// Error implements error.
func (e *atError) Error() string { return e.err.Error() }

func (v raw) describe() string {
	switch v.kind {
	case rawList:
		return "a list"
	case rawOther:
		return v.text
	case rawText, rawString:
		return strconv.Quote(v.text[:min(len(v.text), 40)])
	}
	return v.text
}

func parseMetered(s string) (Metered, error) {
	switch s {
	case "auto":
		return MeteredAuto, nil
	case "yes", "true":
		return MeteredYes, nil
	case "no", "false":
		return MeteredNo, nil
	}
	return "", bad(`write "auto", "yes" or "no"`, "%.40q is not one of them", s)
}

func parseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(l.String(), s) {
			return l, nil
		}
	}
	return 0, bad("write debug, info, warn or error", "%.40q is not a level", s)
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, bad(`write a network such as "192.168.0.0/16"`, "%.60q is not a network", s)
	}
	if p.Masked() != p {
		return p, bad("write "+p.Masked().String(), "%s has bits set beyond its length", s)
	}
	return p, nil
}
