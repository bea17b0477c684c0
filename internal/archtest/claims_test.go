package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName   = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`)
	testFunc   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z]\w+)\(`)
	makeTarget = regexp.MustCompile("`make ([a-z-]+)")
)

// TestEveryClaimOfSecurityHasItsTest keeps the promises from rotting: a row of SECURITY.md's tables that
// names no test, or one that is gone, is a promise that nobody keeps.
func TestEveryClaimOfSecurityHasItsTest(t *testing.T) {
	root := moduleRoot(t)
	tests := testFunctions(t, root)
	makefile := read(t, root, "Makefile")
	text := read(t, root, "SECURITY.md")
	rows := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.Contains(line, "guarded by |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		guard := cells[len(cells)-1]
		if !testName.MatchString(guard) && !makeTarget.MatchString(guard) {
			t.Errorf("SECURITY.md: no test guards: %s", strings.TrimSpace(line))
		}
	}
	if rows < 9 {
		t.Fatalf("only %d claims found in SECURITY.md", rows)
	}
	for _, file := range []string{"SECURITY.md", "ARCHITECTURE.md"} {
		text := read(t, root, file)
		for _, name := range testName.FindAllString(text, -1) {
			if !tests[name] {
				t.Errorf("%s names %s, which does not exist", file, name)
			}
		}
		for _, m := range makeTarget.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s names make %s, which the Makefile does not have", file, m[1])
			}
		}
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testFunctions returns the names of all tests, fuzz targets and benchmarks.
func testFunctions(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(file)
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
