package substituter

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestWhatIsInNixsSocketStaysRight: sendfile gives the socket the file's pages, not copies. Nix may read them when
// the NAR is long forgotten and others have come.
func TestWhatIsInNixsSocketStaysRight(t *testing.T) {
	w := newWorldOf(t, 8*mib)
	w.peer("has all", honest)
	s := w.start()
	s.flights.room.memory.Store(0)
	addr, _ := w.listen(s)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: %s\r\n\r\n", w.narURL(), addr)
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 4<<10), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := w.nar
	got := make([]byte, len(first))
	const unread = 32 << 10
	if _, err := io.ReadFull(resp.Body, got[:len(got)-unread]); err != nil {
		t.Fatal(err)
	}
	for n := 0; n == 0; time.Sleep(time.Millisecond) { // until the answer has left: nobody reads it any more
		n, _ = s.flights.clear()
	}
	for i := range 3 {
		w.path, w.nar, w.info = w.makePath(fmt.Sprint(i), 8*mib)
		w.wantNAR(get(s, w.narURL()))
		s.flights.clear()
	}
	if _, err := io.ReadFull(resp.Body, got[len(got)-unread:]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, first) {
		t.Error("what Nix got changed under it")
	}
}
