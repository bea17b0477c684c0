//go:build !linux

package substituter

import "net"

// unpaced is for Linux, where a machine can be set up to pace connections within itself.
func unpaced(*net.TCPConn) {}
