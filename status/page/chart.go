package page

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/status"
)

const (
	chartHeight = 100.0
	columnWidth = 10.0 // of one sample; the picture is stretched to the page
	columnGap   = 1.5
)

// chart is the picture of a span's samples, and the same as a table.
type chart struct {
	Span    span
	Width   float64
	Height  float64
	Stacks  []stack // from the bottom up
	Top     string  // what the full height means
	Half    string
	Oldest  string
	Summary string // what the picture tells, in a sentence
	Empty   bool
	Rows    []chartRow
}

// stack is one source's columns.
type stack struct{ Class, Path string }

type chartRow struct{ When, Peers, Upstream, Store, Sum string }

func newChart(s span, samples []sample) chart {
	var most int64
	var all sample
	for _, x := range samples {
		most, all = max(most, x.sum()), all.plus(x)
	}
	full := niceCeiling(float64(most))
	c := chart{Span: s, Width: columnWidth * float64(len(samples)), Height: chartHeight, Empty: most == 0}
	c.Stacks = []stack{
		{"peers", columns(samples, full, func(x sample) (from, n int64) { return 0, x.peers })},
		{"upstream", columns(samples, full, func(x sample) (from, n int64) { return x.peers, x.upstream })},
		{"store", columns(samples, full, func(x sample) (from, n int64) { return x.peers + x.upstream, x.store })},
	}
	c.Top, c.Half = axis(s, full), axis(s, full/2)
	c.Oldest = "10 minutes ago"
	perRow, unit := 12, time.Minute
	if s == spanLong {
		c.Oldest, perRow, unit = "24 hours ago", 12, time.Hour
	}
	c.Summary = fmt.Sprintf("Since %s: %s from neighbours, %s from central caches, %s from this machine's store.",
		c.Oldest, bytesText(all.peers), bytesText(all.upstream), bytesText(all.store))
	for end := len(samples); end > 0; end -= perRow {
		var x sample
		for _, one := range samples[max(0, end-perRow):end] {
			x = x.plus(one)
		}
		c.Rows = append(c.Rows, chartRow{when(len(samples)-end, perRow, unit), bytesText(x.peers), bytesText(x.upstream), bytesText(x.store), bytesText(x.sum())})
	}
	return c
}

func when(before, perRow int, unit time.Duration) string {
	n := before / perRow
	word := "minute"
	if unit == time.Hour {
		word = "hour"
	}
	if n == 0 {
		return "the last " + word
	}
	return status.Count(n, word) + " before"
}

// axis says what a height means: a rate on the short span, an amount on the long one.
func axis(s span, v float64) string {
	if v == 0 {
		return ""
	}
	text := scaled(v/s.every().Seconds(), "B/s")
	if s == spanLong {
		text = scaled(v, "B") + " in 5 minutes"
	}
	digits, unit, _ := strings.Cut(text, "\u00a0")
	if strings.Contains(digits, ".") {
		digits = strings.TrimRight(strings.TrimRight(digits, "0"), ".")
	}
	return digits + "\u00a0" + unit
}

// columns draws one source's part of every sample as one path.
func columns(samples []sample, full float64, part func(sample) (from, n int64)) string {
	var b strings.Builder
	for i, x := range samples {
		from, n := part(x)
		if n == 0 {
			continue
		}
		top := chartHeight * (1 - float64(from+n)/full)
		fmt.Fprintf(&b, "M%g %.2fh%gv%.2fh-%gz", columnWidth*float64(i)+columnGap/2, top, columnWidth-columnGap, chartHeight*float64(n)/full, columnWidth-columnGap)
	}
	return b.String()
}

// niceCeiling is the least 1, 2 or 5 times a power of ten that is not below v.
func niceCeiling(v float64) float64 {
	if v <= 0 {
		return 0
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*p*(1+1e-9) {
			return m * p
		}
	}
	return 10 * p
}
