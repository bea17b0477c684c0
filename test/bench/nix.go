//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

func nixRows() []row {
	return []row{
		{"nix", "a closure by nix-store -r from a neighbour's agent over a veth, against nginx there", "≤ 1.15× nginx's time", nixRow},
	}
}

// nixRow is a benchmark of the end-to-end tests, which have machines in network namespaces.
func nixRow(b *bench) (*result, error) {
	rounds := b.rounds
	if b.quick {
		rounds = 1
	}
	cmd := exec.CommandContext(b.ctx, "scripts/bench-neighbour", fmt.Sprint(rounds))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("scripts/bench-neighbour, from the source's root: %w\n%s", err, out)
	}
	res := &result{}
	ratio := 0.0
	for _, line := range strings.Split(string(out), "\n") {
		f := strings.Fields(line)
		for i := 1; i < len(f); i++ {
			v, err := strconv.ParseFloat(f[i-1], 64)
			if err != nil {
				continue
			}
			if name, ok := strings.CutPrefix(f[i], "s/"); ok {
				res.sample(name, "s", v)
			}
			if f[i] == "ratio" {
				ratio = v
			}
		}
		if strings.Contains(line, "nginx [") {
			res.note("%s", strings.TrimSpace(line))
		}
	}
	if len(res.Series) != 2 || ratio == 0 {
		return nil, fmt.Errorf("no figures in its output:\n%s", out)
	}
	res.note("medians of %d rounds", rounds)
	res.most("time of a neighbour / nginx", ratio, 1.15)
	return res, nil
}
