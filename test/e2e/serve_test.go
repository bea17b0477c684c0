//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// serve runs an nginx on a corpus in the machine, for as long as the lab lives, and returns its URL.
func (m *machine) serve(corpusDir, port string) string {
	l := m.lab
	l.t.Helper()
	log, err := os.Create(filepath.Join(m.dir, "nginx-"+port+".err"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	cmd := l.command(context.Background(), "", fmt.Sprint(m.n), filepath.Join(l.w.scripts, "serve-upstream"),
		"-a", m.ip, "-p", port, "-l", filepath.Join(m.dir, "nginx-"+port+".log"), corpusDir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go cmd.Wait() // lab-down ends it
	url := "http://" + m.ip + ":" + port
	eventually(l.t, url+" answers", func() bool {
		a, err := request(m, "GET", url+"/nix-cache-info", nil)
		return err == nil && a.status == 200
	})
	return url
}
