package status

import "testing"

func TestNumbersAreReadable(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := Number(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestCountsHaveTheirWord(t *testing.T) {
	for want, got := range map[string]string{"1 path": Count(1, "path"), "0 paths": Count(0, "path"), "2,000 misses": Count(2000, "miss"), "1 miss": Count(1, "miss")} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
