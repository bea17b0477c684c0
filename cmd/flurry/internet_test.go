package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAMachineIsOnBatteryWhileNoMainsIs(t *testing.T) {
	dir := t.TempDir()
	supply := func(name, kind, online string) {
		t.Helper()
		d := filepath.Join(dir, name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"type": kind, "online": online} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(d, file), []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(is bool, when string) {
		t.Helper()
		if onBattery(dir) != is {
			t.Errorf("%s: %v", when, !is)
		}
	}
	want(false, "without supplies")
	supply("BAT0", "Battery", "")
	want(false, "with a battery alone, as some desktops' mice have")
	supply("AC", "Mains", "0")
	want(true, "unplugged")
	supply("AC2", "Mains", "1")
	want(false, "with one of two plugs in")
	supply("AC2", "Mains", "")
	if err := os.Remove(filepath.Join(dir, "AC2", "online")); err != nil {
		t.Fatal(err)
	}
	want(false, "where the kernel does not say")
}
