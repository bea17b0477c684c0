//go:build linux

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// matrix is the whole result.
type matrix struct {
	Date     string             `json:"date"`
	Jobs     int                `json:"cells_at_once"`
	Load     string             `json:"load_average"` // of the machine at the end: 1, 5 and 15 minutes
	Baseline map[string]float64 `json:"baseline_seconds"`
	Cells    []cell             `json:"cells"`
	Alone    []alone            `json:"nobody_honest"`
}

func (m *matrix) check(t *testing.T) {
	for _, c := range m.Cells {
		if c.Trouble != "" {
			t.Errorf("%s beside %s, %s: %s", c.Source, c.Beside, c.Fault, c.Trouble)
		}
	}
	for _, c := range m.Alone {
		if c.Trouble != "" {
			t.Errorf("nobody honest, %s: %s", c.Fault, c.Trouble)
		}
	}
}

// write puts the table into a Markdown file, below the line that says so, and the figures beside it.
func (m *matrix) write(file string) error {
	const mark = "<!-- below: written by make matrix -->\n"
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, _, _ := strings.Cut(string(old), mark)
	if err := os.WriteFile(file, []byte(head+mark+m.markdown()), 0o644); err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(strings.TrimSuffix(file, ".md")+".json", append(data, '\n'), 0o644)
}

func (m *matrix) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMeasured %s, cells at once: %d, load average of the machine at the end: %s.\n", m.Date, m.Jobs, m.Load)
	for _, p := range pairs {
		fmt.Fprintf(&b, "\n## A hostile %s, an honest %s\n\nWithout a fault: %.2f s.\n\n| fault | exit | added s | what is said of the culprit | honest blamed |\n|---|---|---|---|---|\n", p.kind, p.beside, m.Baseline[p.String()])
		for _, c := range m.Cells {
			if c.Source == p.kind && c.Beside == p.beside {
				fmt.Fprintf(&b, "| %s | %d | %+.2f | %s | %s |\n", c.Fault, c.Exit, c.Added, short(orDash(c.Culprit)), yesNo(c.Honest))
			}
		}
	}
	b.WriteString("\n## Nobody honest\n\n| fault | narinfo | NAR | seconds | what Nix is told |\n|---|---|---|---|---|\n")
	for _, c := range m.Alone {
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %s |\n", c.Fault, c.NarInfo, orDash(c.NAR), c.Seconds, short(c.Says))
	}
	return b.String()
}

// short makes a table's field of s; addresses and ids differ from run to run.
func short(s string) string {
	s = strings.NewReplacer("|", "/", "\n", " ").Replace(s)
	if len(s) > 140 {
		s = s[:140] + "…"
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
