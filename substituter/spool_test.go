package substituter

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
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
	for s.flights.has(w.info.NarHash) { // until the answer has left: nobody reads it any more
		s.flights.clear()
		time.Sleep(time.Millisecond)
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

// What a neighbour has whole it has for others, too: nobody needs this machine's copy once Nix has it.
func TestANARThatANeighbourHasIsKeptForNobody(t *testing.T) {
	for _, from := range []string{"neighbour", "central cache"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 8*mib)
			if from == "neighbour" {
				w.peer("has all", honest)
			} else {
				w.upstream("x", honest)
			}
			s := w.start()
			s.flights.room.memory.Store(0)
			free := s.flights.room.disk.Load()
			w.wantNAR(get(s, w.narURL()))
			synctest.Wait()
			kept := s.flights.has(w.info.NarHash)
			if want := from == "central cache"; kept != want {
				t.Errorf("from a %s: kept %v", from, kept)
			}
			if !kept && s.flights.room.disk.Load() != free {
				t.Error("its room was not given back")
			}
			w.wantNAR(get(s, w.narURL())) // and who asks again gets it
		})
	}
}
