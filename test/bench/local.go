//go:build linux

package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flurry-nix/flurry/verify"
)

func localRows() []row {
	return []row{
		{"narinfo", "the closure's narinfos, keep-alive, one after the other, and on 64 connections", "≤ 1.1× nginx's time; ≥ 0.8× its requests/s", narInfoRow},
		{"absent", "narinfos that nobody has, known to be absent, 64 connections", "≥ 0.95× a trivial net/http handler's requests/s", absentRow},
		{"nars", "the closure's NARs from the local store, on 1, 4 and 16 connections", "≤ 1.2×, 1.1×, 1.05× nginx's time", narsRow},
		{"tiny", "5,000 tiny NARs, one connection", "≤ 1.3× nginx's time", tinyRow},
		{"extremes", "a NAR of one 2 GiB file, and one of 50,000 files, one connection", "none", extremesRow},
	}
}

// contender is one side of a comparison.
type contender struct {
	name   string
	addr   string
	server *server
}

// costs measures what the contender's processes use of the processors, too, per GB of n bytes.
func (res *result) costs(x contender, series string, n int64, run func() (time.Duration, error)) error {
	used := x.server.cpu()
	d, err := run()
	res.sample(series, "s", d.Seconds())
	res.sample(series+": CPU", "s/GB", (x.server.cpu()-used).Seconds()/(float64(n)/1e9))
	return err
}

// servers starts nginx, an agent, if there is one harmonia, and with floor that, on the same corpus and warms
// them up.
func (b *bench) servers(name string, floor bool) (c *corpus, all []contender, stop func(), err error) {
	if c, err = b.corpus(name); err != nil {
		return nil, nil, nil, err
	}
	var started []*server
	stop = func() {
		for _, s := range started {
			s.stop()
		}
	}
	for _, x := range []struct {
		name  string
		start func() (*server, error)
	}{
		{"nginx", func() (*server, error) { return b.unpacedNginx(c.static()) }},
		{"paced nginx", func() (*server, error) { return b.nginx(c.static()) }},
		{"flurry", func() (*server, error) { return b.agent(agentConfig{store: c}) }},
		{"before", func() (*server, error) { return b.agent(agentConfig{store: c, binary: b.before}) }},
		{"harmonia", func() (*server, error) { return b.harmonia(c) }},
		{"floor", func() (*server, error) { return b.floor(c) }},
	} {
		if x.name == "paced nginx" && (!paces() || name != "closure") || x.name == "harmonia" && b.harmoniaBinary == "" || x.name == "before" && b.before == "" || x.name == "floor" && !floor {
			continue
		}
		s, err := x.start()
		if err != nil {
			stop()
			return nil, nil, nil, err
		}
		started = append(started, s)
		all = append(all, contender{x.name, s.addr, s})
	}
	names, sizes := c.nars()
	for _, x := range all {
		if _, err = fetch(x.addr, 2, 1, c.narInfos(), 200, nil); err == nil {
			_, err = fetch(x.addr, 2, 1, names, 200, sizes)
		}
		if err != nil {
			stop()
			return nil, nil, nil, fmt.Errorf("%s: %w", x.name, err)
		}
	}
	return c, all, stop, nil
}

// paces tells whether the machine's congestion control paces what is sent, also to the machine itself.
func paces() bool {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return strings.HasPrefix(string(text), "bbr")
}

// timesOf adds how long others than flurry took, as multiples of nginx's time, for comparison.
func (res *result) timesOf(all []contender, series string) {
	for _, x := range all {
		if x.name != "nginx" && x.name != "flurry" {
			res.plain(fmt.Sprintf("time of %s / nginx%s", x.name, series), res.median(x.name+series)/res.median("nginx"+series))
		}
	}
}

// aboveFloor adds how long flurry took, as a multiple of what the least that a server of files can do takes.
func (res *result) aboveFloor(series string) {
	res.plain("time of flurry / floor"+series, res.median("flurry"+series)/res.median("floor"+series))
}

// turns runs one measurement of each contender per round, in an order that alternates.
func (b *bench) turns(list []contender, measure func(contender) error) error {
	for i := range b.rounds {
		for j := range list {
			if i%2 == 1 {
				j = len(list) - 1 - j
			}
			if err := measure(list[j]); err != nil {
				return fmt.Errorf("%s: %w", list[j].name, err)
			}
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
		}
	}
	return nil
}

func narInfoRow(b *bench) (*result, error) {
	c, all, stop, err := b.servers("closure", false)
	if err != nil {
		return nil, err
	}
	defer stop()
	res := &result{}
	names := c.narInfos()
	err = b.turns(all, func(x contender) error {
		const passes = 20
		d, err := fetch(x.addr, 1, passes, names, 200, nil)
		if err != nil {
			return err
		}
		res.sample(x.name+", sequential", "s", d.Seconds()/passes)
		many := 160
		if b.quick {
			many = 40
		}
		if d, err = fetch(x.addr, 64, many, names, 200, nil); err != nil {
			return err
		}
		res.sample(x.name+", 64 connections", "req/s", float64(many*len(names))/d.Seconds())
		return nil
	})
	if err != nil {
		return nil, err
	}
	res.most("time of flurry / nginx, sequential", res.median("flurry, sequential")/res.median("nginx, sequential"), 1.1)
	res.least("requests/s of flurry / nginx, 64", res.median("flurry, 64 connections")/res.median("nginx, 64 connections"), 0.8)
	res.timesOf(all, ", sequential")
	return res, nil
}

func absentRow(b *bench) (*result, error) {
	_, all, stop, err := b.servers("closure", false)
	if err != nil {
		return nil, err
	}
	defer stop()
	addr, trivial, err := b.helper(trivialServe)
	if err != nil {
		return nil, err
	}
	defer trivial.stop()
	var names []string
	for i := range 400 {
		sum := sha256.Sum256(fmt.Appendf(nil, "absent %d", i))
		var h verify.StoreHash
		copy(h[:], sum[:])
		names = append(names, h.String()+".narinfo")
	}
	res := &result{}
	err = b.turns(append(all, contender{name: "net/http", addr: addr}), func(x contender) error {
		if _, err := fetch(x.addr, 4, 1, names, 404, nil); err != nil {
			return err
		}
		many := 150
		if b.quick {
			many = 40
		}
		d, err := fetch(x.addr, 64, many, names, 404, nil)
		if err != nil {
			return err
		}
		res.sample(x.name, "req/s", float64(many*len(names))/d.Seconds())
		return nil
	})
	if err != nil {
		return nil, err
	}
	res.least("requests/s of flurry / net/http", res.median("flurry")/res.median("net/http"), 0.95)
	res.plain("requests/s of flurry / nginx", res.median("flurry")/res.median("nginx"))
	return res, nil
}

func narsRow(b *bench) (*result, error) {
	c, all, stop, err := b.servers("closure", true)
	if err != nil {
		return nil, err
	}
	defer stop()
	res := &result{}
	names, sizes := c.nars()
	asked := map[int]float64{1: 1.2, 4: 1.1, 16: 1.05}
	for _, n := range []int{1, 4, 16} {
		series := func(x string) string { return fmt.Sprintf("%s, %d connections", x, n) }
		err = b.turns(all, func(x contender) error {
			return res.costs(x, series(x.name), c.bytes(), func() (time.Duration, error) { return fetch(x.addr, n, 1, names, 200, sizes) })
		})
		if err != nil {
			return nil, err
		}
		res.most(fmt.Sprintf("time of flurry / nginx, %d connections", n), res.median(series("flurry"))/res.median(series("nginx")), asked[n])
		res.timesOf(all, series(""))
		res.aboveFloor(series(""))
		if paces() {
			res.plain(fmt.Sprintf("time of flurry / paced nginx, %d connections", n), res.median(series("flurry"))/res.median(series("paced nginx")))
		}
	}
	res.note("%d paths, %.0f MB", len(c.Paths), float64(c.bytes())/1e6)
	return res, nil
}

// tinyRow also measures on one processor: with two it depends on where the kernel happens to put client and server
// whether each answer has to wake a sleeping processor, which takes longer than the answer.
func tinyRow(b *bench) (*result, error) {
	res, err := b.simple("tiny", 1, "", ", one processor")
	if err == nil {
		res.most("time of flurry / nginx", res.median("flurry, tiny")/res.median("nginx, tiny"), 1.3)
		res.most("time of flurry / nginx, one processor", res.median("flurry, tiny, one processor")/res.median("nginx, tiny, one processor"), 1.3)
	}
	return res, err
}

func extremesRow(b *bench) (*result, error) {
	res, err := b.simple("big", 1, "")
	if err != nil {
		return nil, err
	}
	res.plain("time of flurry / nginx, a 2 GiB file", res.median("flurry, big")/res.median("nginx, big"))
	many, err := b.simple("many", 1, "")
	if err != nil {
		return nil, err
	}
	res.Series = append(res.Series, many.Series...)
	res.Figures = append(res.Figures, many.Figures...)
	res.plain("time of flurry / nginx, 50,000 files", res.median("flurry, many")/res.median("nginx, many"))
	return res, nil
}

// simple times all NARs of a corpus, once for each of where: "" leaves it to the kernel where servers and client
// run, anything else puts them on one processor.
func (b *bench) simple(name string, conns int, where ...string) (*result, error) {
	c, all, stop, err := b.servers(name, true)
	if err != nil {
		return nil, err
	}
	defer stop()
	res := &result{}
	names, sizes := c.nars()
	for _, w := range where {
		free := func() {}
		if w != "" {
			if free, err = onOneProcessor(all); err != nil {
				return nil, err
			}
		}
		err = b.turns(all, func(x contender) error {
			return res.costs(x, x.name+", "+name+w, c.bytes(), func() (time.Duration, error) { return fetch(x.addr, conns, 1, names, 200, sizes) })
		})
		free()
		if err != nil {
			return nil, err
		}
		res.timesOf(all, ", "+name+w)
		res.aboveFloor(", " + name + w)
	}
	return res, nil
}

// onOneProcessor confines this program and the contenders' processes to one processor, until free is called.
func onOneProcessor(all []contender) (free func(), err error) {
	pids := []int{os.Getpid()}
	for _, x := range all {
		pids = append(pids, x.server.processes()...)
	}
	set := func(to unix.CPUSet) {
		for _, pid := range pids {
			tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
			for _, t := range tasks {
				if tid, err := strconv.Atoi(filepath.Base(t)); err == nil {
					unix.SchedSetaffinity(tid, &to) // a thread may have ended
				}
			}
		}
	}
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return nil, err
	}
	for i := 0; one.Count() == 0; i++ {
		if was.IsSet(i) {
			one.Set(i)
		}
	}
	set(one)
	return func() { set(was) }, nil
}
