package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var fuzzTarget = regexp.MustCompile(`(?ms)^func (Fuzz[A-Z]\w+)\(f \*testing\.F\) \{\n(.*?)^\}`)

// TestEveryFuzzTargetHasSeeds: a target without seeds does nothing in an ordinary test run and finds
// little in a fuzzing one.
func TestEveryFuzzTargetHasSeeds(t *testing.T) {
	root, n := moduleRoot(t), 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, "archtest/fuzz_test.go") {
			return err
		}
		b, err := os.ReadFile(file)
		for _, m := range fuzzTarget.FindAllSubmatch(b, -1) {
			n++
			stored, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "testdata", "fuzz", string(m[1]), "*"))
			if len(stored) == 0 && !strings.Contains(string(m[2]), "f.Add(") {
				t.Errorf("%s: %s has no seeds: call f.Add or put some into testdata/fuzz", file, m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Fatalf("only %d fuzz targets found", n)
	}
}
