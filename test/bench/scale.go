//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

func scaleRows() []row {
	return []row{
		{"scale", "a store of 200,000 signed paths", "answers ≤ 1.5 s after the start; RSS ≤ 96 MB; idle ≤ 0.2 % of one core", scaleRow},
	}
}

const scalePaths = 200_000

// large makes a database of 200,000 signed paths of five references each; there are no trees.
func (b *bench) large() (*corpus, error) {
	c := &corpus{dir: filepath.Join(b.dir, "large")}
	stamp := filepath.Join(c.dir, "stamp-"+corpusVersion)
	if text, err := os.ReadFile(stamp); err == nil {
		return c, json.Unmarshal(text, c)
	}
	fmt.Fprintln(os.Stderr, "          making corpus large …")
	if err := os.RemoveAll(c.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	infos := make([]*verify.NarInfo, scalePaths)
	for i := range infos {
		sum := sha256.Sum256(fmt.Appendf(nil, "large %d", i))
		var h verify.StoreHash
		copy(h[:], sum[:])
		p, err := verify.ParseStorePath(fmt.Sprintf("/nix/store/%s-synthetic-package-%d.%d", h, i, i%17))
		if err != nil {
			return nil, err
		}
		n := &verify.NarInfo{StorePath: p, NarSize: 200 + int64(sum[0])<<8}
		copy(n.NarHash[:], sum[:])
		for k := 1; k <= min(i, 5); k++ {
			n.References = append(n.References, infos[i-1-(k-1)*i/5].StorePath.Base())
		}
		b.key.sign(n)
		infos[i] = n
		if i%200 == 0 {
			c.Paths = append(c.Paths, item{Hash: h.String(), Size: n.NarSize})
		}
	}
	if err := writeDatabase(b.ctx, filepath.Join(c.dir, "root"), infos); err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return c, os.WriteFile(stamp, text, 0o644)
}

func scaleRow(b *bench) (*result, error) {
	c, err := b.large()
	if err != nil {
		return nil, err
	}
	res := &result{}
	dir := filepath.Join(b.tmp, "large")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i := range b.rounds + 1 {
		again := "again"
		if i == 0 {
			again = "first"
		}
		start := time.Now()
		f, err := b.agentNow(agentConfig{store: c, dir: dir})
		if err != nil {
			return nil, err
		}
		err = b.scaleOnce(res, f, c, again, start)
		f.stop()
		if err != nil {
			return nil, err
		}
	}
	res.most("s from the start to the first answer from the store", max(res.median("first start: narinfo answered"), res.median("again start: narinfo answered")), 1.5)
	res.most("RSS, MB", res.median("again start: RSS, idle"), 96)
	res.most("idle, % of one core", res.median("again start: idle"), 0.2)
	res.most("idle after the first start, % of one core", res.median("first start: idle"), 0.2)
	return res, nil
}

func (b *bench) scaleOnce(res *result, f *server, c *corpus, again string, start time.Time) error {
	again += " start: "
	for { // a path of the store; the upstream has nothing
		if _, err := fetch(f.addr, 1, 1, []string{c.Paths[0].Hash + ".narinfo"}, 200, nil); err == nil {
			break
		}
		if time.Since(start) > time.Minute {
			return fmt.Errorf("no narinfo of the store is answered")
		}
		time.Sleep(5 * time.Millisecond)
	}
	res.sample(again+"narinfo answered", "s", time.Since(start).Seconds())
	for {
		st, err := f.status()
		if err == nil && st.Store.Shareable == scalePaths {
			break
		}
		if time.Since(start) > 10*time.Minute {
			return fmt.Errorf("signatures are not checked: %+v", st)
		}
		time.Sleep(50 * time.Millisecond)
	}
	res.sample(again+"all signatures known", "s", time.Since(start).Seconds())
	res.sample(again+"CPU until then", "s", f.cpu().Seconds())
	var names []string
	for _, p := range c.Paths {
		names = append(names, p.Hash+".narinfo")
	}
	if _, err := fetch(f.addr, 4, 1, names, 200, nil); err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	idle := 15 * time.Second
	if b.quick {
		idle = 5 * time.Second
	}
	used := f.running()
	time.Sleep(idle)
	res.sample(again+"idle", "% core", 100*(f.running()-used).Seconds()/idle.Seconds())
	res.sample(again+"RSS, idle", "MB", float64(f.agentMemory("VmRSS"))/1e6)
	res.sample(again+"RSS with the port's owner", "MB", float64(f.memory("VmRSS"))/1e6)
	return nil
}
