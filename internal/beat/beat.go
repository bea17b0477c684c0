// Package beat lets all that an idle agent looks at once a second happen at the same instants: waking up costs more
// than the looking, and one wake-up then serves all of it.
package beat

import "time"

// Every is how far apart beats are.
const Every = time.Second

// start differs from process to process, so that agents do not all wake at once.
var start = time.Now()

// Next returns how long it is until the next beat: more than 0, at most Every.
func Next() time.Duration { return Every - (time.Since(start)%Every+Every)%Every }
