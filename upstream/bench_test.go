package upstream

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkXZ streams an xz NAR from a cache on loopback and has the xz program decode the same file,
// in turns. It reports the median of our time over the program's; the aim is 1.05.
func BenchmarkXZ(b *testing.B) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	nar, err := os.ReadFile(exe) // real machine code, as most NARs hold
	if err != nil {
		b.Fatal(err)
	}
	nar = append(nar, nar...) // twice, which is more than the 8 MiB that xz remembers
	up := newCache(b)
	h := up.add(nar, "xz")
	file := filepath.Join(b.TempDir(), "nar.xz")
	if err := os.WriteFile(file, up.files["/nar/"+h.String()+".nar"], 0o600); err != nil {
		b.Fatal(err)
	}
	for _, how := range []string{"", "none"} {
		c := up.client(func(cfg *Config) { cfg.XZ = how })
		v := mustNarInfo(b, c, h)
		b.Run(c.Status().XZ, func(b *testing.B) {
			b.SetBytes(int64(len(nar)))
			var ratios []float64
			for b.Loop() {
				start := time.Now()
				r, err := c.NAR(context.Background(), v, 0)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				r.Close()
				ours := time.Since(start)
				b.StopTimer()
				ratios = append(ratios, ours.Seconds()/decodeByProgram(b, file).Seconds())
				b.StartTimer()
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "x(xz-dc)")
		})
	}
}

func decodeByProgram(b *testing.B, file string) time.Duration {
	f, err := os.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	start := time.Now()
	cmd := exec.Command("xz", "-dc", "-T1")
	cmd.Stdin = f // its output goes to /dev/null
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
