//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func upstreamRows() []row {
	return []row{
		{"upstream", "what Flurry adds to an upstream's narinfo that it does not know yet", "p50 ≤ 0.3 ms, p99 ≤ 1 ms", upstreamRow},
		{"xz", "an xz NAR from an upstream, against xz -dc", "≥ 0.95×", xzRow},
	}
}

func upstreamRow(b *bench) (*result, error) {
	c, err := b.corpus("tiny")
	if err != nil {
		return nil, err
	}
	up, err := b.nginx(c.static())
	if err != nil {
		return nil, err
	}
	defer up.stop()
	proxy, p, err := b.helper(proxyServe, up.addr)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	front, err := b.nginxBefore(up.addr)
	if err != nil {
		return nil, err
	}
	defer front.stop()
	res := &result{}
	names := c.narInfos()
	ask := func(series, addr string) error {
		if _, err := fetch(addr, 1, 1, names[:50], 200, nil); err != nil { // connections to the upstream are open
			return err
		}
		x, err := dial(addr)
		if err != nil {
			return err
		}
		defer x.close()
		if _, err := x.get("nix-cache-info"); err != nil {
			return err
		}
		var all []float64
		began := processors()
		for _, name := range names[50:] {
			start := time.Now()
			a, err := x.get(name)
			if err != nil || a.status != 200 {
				return fmt.Errorf("%s: status %d, %w", name, a.status, err)
			}
			all = append(all, time.Since(start).Seconds()*1e3)
		}
		res.sample(series+", "+hostTook, "%", processors().since(began))
		res.sample(series+", p50", "ms", quantile(all, 0.5))
		res.sample(series+", p99", "ms", quantile(all, 0.99))
		return nil
	}
	contenders := []contender{{name: "nginx", addr: up.addr}, {name: "through nginx", addr: front.addr}, {name: "through Go's reverse proxy", addr: proxy}, {name: "through flurry"}}
	if b.before != "" {
		contenders = append(contenders, contender{name: "through before"})
	}
	err = b.turns(contenders, func(x contender) error {
		if x.addr == "" { // one that knows nothing yet
			binary := ""
			if x.name == "through before" {
				binary = b.before
			}
			f, err := b.agent(agentConfig{upstream: up.addr, binary: binary})
			if err != nil {
				return err
			}
			defer f.stop()
			x.addr = f.addr
		}
		return ask(x.name, x.addr)
	})
	if err != nil {
		return nil, err
	}
	for _, q := range []string{", p50", ", p99"} {
		for _, x := range contenders[1:] {
			if x.name != "through flurry" {
				res.plain("ms added, "+x.name+q, res.median(x.name+q)-res.median("nginx"+q))
			}
		}
	}
	res.most("ms added, p50", res.median("through flurry, p50")-res.median("nginx, p50"), 0.3)
	res.most("ms added, p99", res.median("through flurry, p99")-res.median("nginx, p99"), 1)
	return res, nil
}

func xzRow(b *bench) (*result, error) {
	c, err := b.corpus("xz")
	if err != nil {
		return nil, err
	}
	up, err := b.nginx(c.static())
	if err != nil {
		return nil, err
	}
	defer up.stop()
	p := c.Paths[0]
	res := &result{}
	contenders := []contender{{name: "xz -dc"}, {name: "xz -dc into a file"}, {name: "flurry"}}
	if b.before != "" {
		contenders = append(contenders, contender{name: "before"})
	}
	err = b.turns(contenders, func(x contender) error {
		binary := ""
		switch x.name {
		case "before":
			binary = b.before
		case "flurry":
		default:
			cmd := exec.CommandContext(b.ctx, "xz", "-dc", filepath.Join(c.static(), p.NARName+".xz"))
			if x.name != "xz -dc" {
				file, err := os.CreateTemp(b.tmp, "xz-")
				if err != nil {
					return err
				}
				defer os.Remove(file.Name())
				defer file.Close()
				cmd.Stdout = file
			}
			start := time.Now()
			err := cmd.Run()
			res.sample(x.name, "MB/s", float64(p.Size)/1e6/time.Since(start).Seconds())
			if err == nil {
				res.sample(x.name+", of xz", "CPU s", (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
			}
			return err
		}
		f, err := b.agent(agentConfig{upstream: up.addr, binary: binary})
		if err != nil {
			return err
		}
		defer f.stop()
		if _, err := fetch(f.addr, 1, 1, c.narInfos(), 200, nil); err != nil {
			return err
		}
		used, xz := f.cpu(), f.children()
		d, err := fetch(f.addr, 1, 1, []string{p.NARName}, 200, []int64{p.Size})
		res.sample(x.name, "MB/s", float64(p.Size)/1e6/d.Seconds())
		for range 100 { // the agent may not have waited for it yet
			if f.children() > xz {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		xz = f.children() - xz
		res.sample(x.name+", of xz", "CPU s", xz.Seconds())
		res.sample(x.name+", of the agent", "CPU s", (f.cpu() - used - xz).Seconds())
		return err
	})
	if err != nil {
		return nil, err
	}
	res.plain("rate of flurry / xz -dc into a file", res.median("flurry")/res.median("xz -dc into a file"))
	if b.before != "" {
		res.plain("rate of before / xz -dc", res.median("before")/res.median("xz -dc"))
	}
	res.least("rate of flurry / xz -dc", res.median("flurry")/res.median("xz -dc"), 0.95)
	return res, nil
}
