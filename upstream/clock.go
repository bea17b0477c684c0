package upstream

import (
	"net/http"
	"strconv"
	"time"
)

// noteClock compares an answer's date with the local clock. An answer from a cache on the way says how
// many seconds old it is.
func (c *Client) noteClock(h http.Header, now time.Time) {
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	age, _ := strconv.Atoi(h.Get("Age"))
	skew := at.Add(time.Duration(max(age, 0)) * time.Second).Sub(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew = &skew
}
