//go:build pin

// Package pin keeps modules in go.mod at their chosen versions before the first package needs them: the
// DHT must build with the same libp2p that everything else is tested with. It is never compiled.
package pin

import (
	_ "github.com/libp2p/go-libp2p-kad-dht"
)
