package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func testBreaker() *breaker {
	b := &breaker{}
	b.init(time.Second, 30*time.Second)
	return b
}

func enter(t *testing.T, b *breaker) *ticket {
	t.Helper()
	k, err := b.enter(context.Background(), false)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var errTest = errors.New("connection refused")

func TestTheBreakersPauseGrowsAndASuccessEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		enter(t, b).fail(errTest, 0)
		for n, nominal := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			_, until, _ := b.state()
			pause := time.Until(until)
			if nominal *= time.Second; pause < nominal*7/10-1 || pause > nominal*13/10+1 {
				t.Errorf("pause %d of %v, want about %v", n, pause, nominal)
			}
			time.Sleep(pause - 1)
			if _, err := b.enter(context.Background(), false); !errors.Is(err, ErrUnreachable) || !errors.Is(err, errTest) {
				t.Errorf("during the pause: %v", err)
			}
			time.Sleep(time.Nanosecond)
			probe := enter(t, b)
			if _, err := b.enter(context.Background(), false); err == nil {
				t.Error("a second probe at a time")
			}
			probe.fail(errTest, 0)
		}
		_, until, _ := b.state()
		time.Sleep(time.Until(until))
		enter(t, b).ok()
		enter(t, b).drop()
		enter(t, b).fail(errTest, 0)
		if _, until, _ = b.state(); time.Until(until) > 2*time.Second {
			t.Error("the pause did not start anew")
		}
	})
}

func TestAFailureOlderThanASuccessOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		slow := enter(t, b)
		time.Sleep(time.Nanosecond)
		enter(t, b).ok()
		slow.fail(errTest, 0)
		if name, _, _ := b.state(); name != "closed" {
			t.Error(name)
		}
	})
}

func TestServerErrorsOpenTheBreakerOnlyInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker()
		for range 3 {
			for range maxSoft - 1 {
				enter(t, b).serverError(errTest)
			}
			enter(t, b).ok()
			time.Sleep(time.Nanosecond)
		}
		for range maxSoft {
			enter(t, b).serverError(errTest)
		}
		if name, _, _ := b.state(); name != "open" {
			t.Error(name)
		}
	})
}

func TestAnUrgentQuestionJoinsTheProbe(t *testing.T) {
	for _, good := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := testBreaker()
			enter(t, b).fail(errTest, 0)
			probe, err := b.enter(context.Background(), true)
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan error)
			go func() {
				k, err := b.enter(context.Background(), true)
				if err == nil {
					k.ok()
				}
				got <- err
			}()
			synctest.Wait()
			if good {
				probe.ok()
			} else {
				probe.fail(errTest, 0)
			}
			if err := <-got; (err == nil) != good {
				t.Errorf("probe good %v: %v", good, err)
			}
			// A probe given up by its caller proves nothing and blocks nobody.
			b = testBreaker()
			enter(t, b).fail(errTest, 0)
			probe, _ = b.enter(context.Background(), true)
			probe.drop()
			if _, err := b.enter(context.Background(), true); err != nil {
				t.Error(err)
			}
		})
	}
}
