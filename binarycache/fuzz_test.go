package binarycache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

// FuzzNARURL: a name has one meaning, and printing that gives the name again.
func FuzzNARURL(f *testing.F) {
	f.Add(NARURL(verify.StoreHash{1}, verify.Hash{2}))
	f.Add("nar/../../../../../../../../../../../../../../../../../../../../../../../../../../../x.nar")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if h, sum, ok := ParseNARURL(s); ok && NARURL(h, sum) != s {
			t.Fatalf("%q became %q", s, NARURL(h, sum))
		}
	})
}

type bytesContent []byte

func (c bytesContent) Size() int64 { return int64(len(c)) }
func (c bytesContent) WriteRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	k, err := w.Write(c[off : off+n])
	return int64(k), err
}

// FuzzRange: whatever range is asked of a NAR of any size, the answer is what its header says it is.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=5-", "bytes=-3", "bytes=0-9,12-13", "bytes=9223372036854775807-", "bytes=-9223372036854775807", "bytes=-0", "lines=1-2", ""} {
		f.Add(s, uint16(10))
		f.Add(s, uint16(0))
	}
	f.Fuzz(func(t *testing.T, header string, size uint16) {
		content := make(bytesContent, size)
		for i := range content {
			content[i] = byte(i * 7)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Range"] = []string{header}
		w := httptest.NewRecorder()
		ServeNAR(w, r, content, 0, func(err error) { t.Fatal(err) })
		got := w.Body.Bytes()
		switch w.Code {
		case http.StatusOK:
			if !bytes.Equal(got, content) {
				t.Fatalf("%q of %d: %d bytes", header, size, len(got))
			}
		case http.StatusPartialContent:
			var from, to, total int
			if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total); err != nil || total != len(content) ||
				from < 0 || to >= total || to < from || !bytes.Equal(got, content[from:to+1]) {
				t.Fatalf("%q of %d: %s, %d bytes", header, size, w.Header().Get("Content-Range"), len(got))
			}
		case http.StatusRequestedRangeNotSatisfiable:
			if len(got) != 0 {
				t.Fatalf("%q of %d: %d bytes", header, size, len(got))
			}
		default:
			t.Fatalf("%q of %d: status %d", header, size, w.Code)
		}
	})
}
