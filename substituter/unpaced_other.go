//go:build !linux

package substituter

import "syscall"

// unpaced is for Linux, where a machine can be set up to pace connections within itself.
func unpaced(syscall.RawConn) {}

// brief is for Linux; elsewhere connections wait in Go's poller alone.
func brief(syscall.RawConn) bool { return false }
