package status

import (
	"strconv"
	"strings"
)

// Number is n for people: thousands are separated by commas.
func Number(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Count is n with its word, as in "1 path", "2,000 misses".
func Count(n int, word string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(word, "s"):
		word += "es"
	default:
		word += "s"
	}
	return Number(int64(n)) + " " + word
}
