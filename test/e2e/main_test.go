//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// world is what every test needs and none may change.
type world struct {
	base    string // scratch directory that an unprivileged user may traverse
	flurry  string // the binary under test, a copy that any user may run
	scripts string // the lab's scripts
	corpus  *corpus
	cache   string // what is kept between runs: corpora, newer Nix
	absent  string // why the tests cannot run here, "" if they can
}

var theWorld world

func TestMain(m *testing.M) {
	if spec := os.Getenv(attackEnv); spec != "" {
		os.Exit(runAttacker(spec))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	base, err := os.MkdirTemp("", "flurry-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(base)
	go endLabsOnSignal(base)
	theWorld, err = lookAround(base)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// endLabsOnSignal cleans up before an interrupted test process exits. A process that dies in another
// way is cleaned up after by its labs' reapers.
func endLabsOnSignal(base string) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // who reads the output may be gone already
	<-c
	endAllLabs()
	os.RemoveAll(base)
	os.Exit(130)
}

func lookAround(base string) (world, error) {
	w := world{base: base}
	if err := os.Chmod(base, 0o755); err != nil {
		return w, err
	}
	scripts, err := filepath.Abs("../../lab")
	if err != nil {
		return w, err
	}
	w.scripts = scripts
	if w.absent = whatIsMissing(); w.absent != "" {
		return w, nil
	}
	if w.cache, err = labCache(); err != nil {
		return w, err
	}
	if w.corpus, err = readCorpus(filepath.Join(w.cache, "medium")); err != nil {
		w.absent = err.Error() + "; make it with: lab/make-corpus -c mixed " + filepath.Join(w.cache, "medium") + " medium"
		return w, nil
	}
	w.flurry = filepath.Join(base, "flurry")
	return w, installFlurry(w.flurry)
}

func whatIsMissing() string {
	if os.Geteuid() != 0 {
		return "the lab needs root"
	}
	for _, c := range []string{"nix", "nginx", "ip", "tc", "unshare", "setpriv", "python3"} {
		if _, err := exec.LookPath(c); err != nil {
			return err.Error() + "; try: scripts/install-deps test"
		}
	}
	return ""
}

func labCache() (string, error) {
	if d := os.Getenv("FLURRY_LAB_CACHE"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	return filepath.Join(d, "flurry-lab"), err
}

// installFlurry puts the binary where any user may run it: the one FLURRY_BIN names, else a new build.
func installFlurry(to string) error {
	if from := os.Getenv("FLURRY_BIN"); from != "" {
		out, err := exec.Command("install", "-m", "755", from, to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("FLURRY_BIN: %s", out)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a cold build takes about 3
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-X main.version=0.1.0-e2e", "-o", to, "../../cmd/flurry")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building flurry: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// needWorld skips a test that cannot run here, or fails it where everything is required.
func needWorld(t testing.TB) world {
	t.Helper()
	if theWorld.absent != "" {
		missing(t, theWorld.absent)
	}
	return theWorld
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}
