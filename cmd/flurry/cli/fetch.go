package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/verify"
)

const (
	askAtOnce   = 16      // narinfos; each costs the agent one question to a neighbour or upstream
	fetchAtOnce = 4       // NARs; enough to hide the pauses between small ones
	maxClosure  = 1 << 20 // paths; the largest closures known have some ten thousand
)

func (a *App) fetchCommand() *cobra.Command {
	var dir string
	var recursive bool
	cmd := &cobra.Command{
		Use:   "fetch PATH… -o DIR",
		Short: "Fetch and verify store paths into a directory that is a binary cache",
		Long: "Fetch store paths through the agent, verify them, and write them into DIR, which then is a binary cache:\n" +
			"nix copy --from file://DIR PATH. What is already there and right is kept, what is there in part is completed.\n" + pathHelp,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVarP(&dir, "output", "o", "", "`directory` to write to, made if missing")
	cmd.Flags().BoolVar(&recursive, "recursive", false, "fetch everything that the paths refer to, as well")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined two lines above
	}
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		targets, err := parseTargets(args)
		if err != nil {
			return err
		}
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return a.fetch(ctx, c, dir, targets, recursive)
	})
	return cmd
}

func (a *App) fetch(ctx context.Context, c *control.Client, dir string, targets []control.Target, recursive bool) error {
	k, err := c.Keys(ctx)
	if err != nil {
		return err
	}
	keys, err := verify.NewKeys(k.Public, k.Private)
	if err != nil {
		return fmt.Errorf("the agent's keys: %w", err)
	}
	unlock, err := openCacheDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	f := &fetcher{client: c, keys: keys, dir: dir}
	paths, err := f.closure(ctx, targets, recursive)
	if err != nil {
		return err
	}
	if err := f.writeCacheInfo(paths[0].Path().Dir()); err != nil {
		return err
	}
	if err := f.fitsOnDisk(paths); err != nil {
		return err
	}
	f.progress = newProgress(a.Out, a.Err, paths)
	err = f.all(ctx, paths)
	f.progress.finish()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%s, %s of NARs in %s, %s of them new; use them with: nix copy --from file://%s\n",
		status.Count(len(paths), "path"), bytesText(f.progress.total), dir, bytesText(f.progress.fresh.Load()), absoluteDir(dir))
	return nil
}

func absoluteDir(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// openCacheDir makes the directory and keeps other fetches out of it; the lock is the directory's own.
func openCacheDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Join(dir, "nar"), 0o755); err != nil {
		return nil, fmt.Errorf("%w; name a directory that can be written with -o", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another fetch is writing to %s; wait for it, or name another directory", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// fetcher fills one directory.
type fetcher struct {
	client   *control.Client
	keys     *verify.Keys
	dir      string
	progress *progress
}

// closure returns the verified narinfos of the targets, and of what they refer to if recursive,
// without repeats. All that are missing are named in the error.
func (f *fetcher) closure(ctx context.Context, targets []control.Target, recursive bool) ([]*verify.Verified, error) {
	seen := map[verify.StoreHash]bool{}
	var all []*verify.Verified
	var missing []string
	for len(targets) > 0 {
		var level []control.Target
		for _, t := range targets {
			if !seen[t.Hash] {
				seen[t.Hash] = true
				level = append(level, t)
			}
		}
		if len(seen) > maxClosure {
			return nil, fmt.Errorf("more than %d paths; fetch parts of it", maxClosure)
		}
		found, lacking, err := f.ask(ctx, level)
		if err != nil {
			return nil, err
		}
		missing = append(missing, lacking...)
		all = append(all, found...)
		targets = nil
		for _, v := range found {
			for _, ref := range v.References() {
				if !recursive {
					break
				}
				t, err := control.ParseTarget(v.Path().Dir() + "/" + ref)
				if err != nil {
					return nil, err
				}
				targets = append(targets, t)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("nobody has %s; \"flurry locate\" tells who was asked", strings.Join(missing, ", "))
	}
	return all, nil
}

// ask gets and verifies the narinfos of one level, in its order.
func (f *fetcher) ask(ctx context.Context, level []control.Target) (found []*verify.Verified, missing []string, err error) {
	infos := make([]*verify.Verified, len(level))
	var mu sync.Mutex // guards missing
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(askAtOnce)
	for i, t := range level {
		g.Go(func() error {
			v, err := f.narInfo(ctx, t)
			if errors.Is(err, control.ErrNotThere) {
				mu.Lock()
				missing = append(missing, t.String())
				mu.Unlock()
				return nil
			}
			infos[i] = v
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return slices.DeleteFunc(infos, func(v *verify.Verified) bool { return v == nil }), missing, nil
}

func (f *fetcher) narInfo(ctx context.Context, t control.Target) (*verify.Verified, error) {
	var v *verify.Verified
	err := retry(ctx, func() (bool, error) {
		body, _, err := f.client.Cache(ctx, t.Hash.String()+".narinfo", 0)
		if err != nil {
			return false, err
		}
		defer body.Close()
		v, err = f.check(t, body)
		return false, err
	})
	return v, err
}

// check verifies the answer to the question for t.
func (f *fetcher) check(t control.Target, answer io.Reader) (*verify.Verified, error) {
	n, err := verify.ReadNarInfo(answer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t, err) // may have broken off
	}
	if n.StorePath.Hash() != t.Hash || t.Base != "" && n.StorePath.Base() != t.Base {
		return nil, finalError{fmt.Errorf("asked for %s, the agent answered about %s; check the name", t, n.StorePath.Base())}
	}
	v, err := f.keys.Verify(n)
	if err != nil {
		return nil, finalError{fmt.Errorf("%w; is its cache's key in the agent's configuration?", err)}
	}
	return v, nil
}

// all fetches what is not there yet. A narinfo is written after its NAR, so that the directory never
// promises what it does not have.
func (f *fetcher) all(ctx context.Context, paths []*verify.Verified) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchAtOnce)
	byNAR := map[verify.Hash][]*verify.Verified{} // the same NAR may belong to several paths
	var order []verify.Hash
	for _, v := range paths {
		if byNAR[v.NarHash()] == nil {
			order = append(order, v.NarHash())
		}
		byNAR[v.NarHash()] = append(byNAR[v.NarHash()], v)
	}
	for _, h := range order {
		g.Go(func() error {
			for i, v := range byNAR[h] {
				if err := f.path(ctx, v, i == 0); err != nil {
					return fmt.Errorf("%s: %w", v.Path().Base(), err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// path fetches v. first tells whether its NAR was not looked at before.
func (f *fetcher) path(ctx context.Context, v *verify.Verified, first bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := "nar/" + v.NarHash().Base32() + ".nar"
	fresh, err := f.nar(ctx, v, filepath.Join(f.dir, name))
	if err != nil {
		return err
	}
	if !fresh && first {
		f.progress.add(v.NarSize(), false)
	}
	text := v.For(verify.ScopeNone, name, "none").String()
	if err := writeAtomically(filepath.Join(f.dir, v.Path().Hash().String()+".narinfo"), text); err != nil {
		return err
	}
	f.progress.done(v, fresh)
	return nil
}

// writeCacheInfo makes the directory a cache of the store that the paths are from.
func (f *fetcher) writeCacheInfo(storeDir string) error {
	name := filepath.Join(f.dir, "nix-cache-info")
	text := "StoreDir: " + storeDir + "\nWantMassQuery: 1\nPriority: 50\n" // after caches that need no copying
	switch old, err := os.ReadFile(name); {
	case errors.Is(err, os.ErrNotExist):
		return writeAtomically(name, text)
	case err != nil:
		return err
	case !slices.Contains(strings.Split(string(old), "\n"), "StoreDir: "+storeDir):
		return fmt.Errorf("%s is a cache of another store than %s; name another directory", f.dir, storeDir)
	}
	return nil
}

// fitsOnDisk tells at once what would only be known after an hour.
func (f *fetcher) fitsOnDisk(paths []*verify.Verified) error {
	var need int64
	seen := map[verify.Hash]bool{}
	for _, v := range paths {
		name := filepath.Join(f.dir, "nar", v.NarHash().Base32()+".nar")
		if seen[v.NarHash()] {
			continue
		}
		seen[v.NarHash()] = true
		need += v.NarSize()
		for _, there := range []string{name, name + partSuffix} {
			if info, err := os.Stat(there); err == nil {
				need -= min(info.Size(), v.NarSize())
				break
			}
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.dir, &fs); err != nil {
		return nil //nolint:nilerr // a file system that does not say may still have room
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); need > free {
		return fmt.Errorf("%s has %s free, and %s are needed; make room, or name another directory", f.dir, bytesText(free), bytesText(need))
	}
	return nil
}

func writeAtomically(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = io.WriteString(f, text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return err
}
