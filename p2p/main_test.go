package p2p

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// hostileChild makes the test binary an agent that a benchmark attacks, see attack_test.go.
const hostileChild = "FLURRY_P2P_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(hostileChild) != "" {
		runTarget()
		return
	}
	goleak.VerifyTestMain(m)
}
