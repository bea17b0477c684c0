//go:build !linux

package doctor

import "time"

// What a process is and was given cannot be asked in the same way elsewhere.

func daemonStart() (time.Time, bool) { return time.Time{}, false }

func daemonEnv() (func(string) string, bool) { return nil, false }
