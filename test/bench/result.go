//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// report is the JSON file.
type report struct {
	Date    string    `json:"date"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Rounds  int       `json:"rounds"`
	Quick   bool      `json:"quick,omitempty"`
	Results []*result `json:"results"`
}

// result is what a row measured: series of samples, and figures derived from their medians.
type result struct {
	Row     string    `json:"row"`
	What    string    `json:"what"`
	Reach   string    `json:"reach"`
	Series  []*series `json:"series"`
	Figures []figure  `json:"figures"`
	Notes   []string  `json:"notes,omitempty"`
}

type series struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Samples []float64 `json:"samples"`
}

// figure is a ratio or another derived number, and whether it is within what was asked.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Asked string  `json:"asked,omitempty"` // such as "≤ 1.1"; "" where nothing was asked
	Met   bool    `json:"met"`
}

// sample appends one sample to the named series.
func (r *result) sample(name, unit string, v float64) {
	for _, s := range r.Series {
		if s.Name == name {
			s.Samples = append(s.Samples, v)
			return
		}
	}
	r.Series = append(r.Series, &series{name, unit, []float64{v}})
}

// median of the named series.
func (r *result) median(name string) float64 {
	for _, s := range r.Series {
		if s.Name == name {
			return s.quantile(0.5)
		}
	}
	panic("no series " + name)
}

func (s *series) quantile(q float64) float64 { return quantile(s.Samples, q) }

func quantile(samples []float64, q float64) float64 {
	v := slices.Sorted(slices.Values(samples))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 >= len(v) {
		return v[len(v)-1]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

// most and least derive a figure that must not be above, or below, limit.
func (r *result) most(name string, v, limit float64) {
	r.Figures = append(r.Figures, figure{name, v, fmt.Sprintf("≤ %g", limit), v <= limit})
}

func (r *result) least(name string, v, limit float64) {
	r.Figures = append(r.Figures, figure{name, v, fmt.Sprintf("≥ %g", limit), v >= limit})
}

func (r *result) plain(name string, v float64) {
	r.Figures = append(r.Figures, figure{Name: name, Value: v, Met: true})
}

func (r *result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", r.Row, r.What)
	for _, s := range r.Series {
		fmt.Fprintf(w, "  %-34s %10.4g %-8s  (%.4g … %.4g, %d)\n", s.Name, s.quantile(0.5), s.Unit, s.quantile(0), s.quantile(1), len(s.Samples))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	for _, f := range r.Figures {
		fmt.Fprintf(w, "  %s\n", f)
	}
}

func (f figure) String() string {
	verdict := ""
	switch {
	case f.Asked == "":
	case f.Met:
		verdict = "asked " + f.Asked + ", met"
	default:
		verdict = "asked " + f.Asked + ", NOT MET"
	}
	return fmt.Sprintf("%-42s %8.3f  %s", f.Name, f.Value, verdict)
}

func (r *report) printRatios(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %d cores, %d rounds%s\n", r.CPU, r.Cores, r.Rounds, map[bool]string{true: ", QUICK: no figures to keep"}[r.Quick])
	for _, res := range r.Results {
		for _, f := range res.Figures {
			fmt.Fprintf(w, "%-12s %s\n", res.Row, f)
		}
	}
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(b), "\n") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimLeft(name, "\t: ")
		}
	}
	return "unknown"
}

// hostTook names what a guest's figures suffer from.
const hostTook = "processor time wanted that the machine's host took"

// processorTime is what all processors did since this machine booted, in ticks.
type processorTime struct{ used, stolen float64 }

// processors reads it; a machine that is no guest is stolen nothing.
func processors() (t processorTime) {
	stat, _ := os.ReadFile("/proc/stat")
	all, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(all) { // cpu user nice system idle iowait irq softirq steal …
		v, _ := strconv.ParseFloat(field, 64)
		switch i {
		case 1, 2, 3, 6, 7:
			t.used += v
		case 8:
			t.stolen = v
		}
	}
	return t
}

// since returns the stolen share of the time that was wanted since before, in percent.
func (t processorTime) since(before processorTime) float64 {
	stolen := t.stolen - before.stolen
	return 100 * stolen / max(1, stolen+t.used-before.used)
}
