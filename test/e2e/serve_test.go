//go:build linux

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// serve runs an nginx on a corpus in the machine, for as long as the lab lives, and returns its URL.
func (m *machine) serve(corpusDir, port string) string {
	m.lab.t.Helper()
	m.serveUpstream(corpusDir, port)
	url := "http://" + m.ip + ":" + port
	eventually(m.lab.t, url+" answers", func() bool {
		a, err := request(m, "GET", url+"/nix-cache-info", nil)
		return err == nil && a.status == 200
	})
	return url
}

// serveHTTP2 is serve over TLS, which is to be trusted by the certificate in ca.
func (m *machine) serveHTTP2(corpusDir, port string) (url, ca string) {
	t := m.lab.t
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "central cache"}, IPAddresses: []net.IP{net.ParseIP(m.ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	both := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), cert...)
	ca, served := filepath.Join(m.dir, "ca-"+port+".pem"), filepath.Join(m.dir, "nginx-"+port+".pem")
	if err := os.WriteFile(served, both, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, cert, 0o644); err != nil {
		t.Fatal(err)
	}
	m.serveUpstream(corpusDir, port, "-s", served)
	return "https://" + m.ip + ":" + port, ca
}

// serveUpstream starts lab/serve-upstream in the machine.
func (m *machine) serveUpstream(corpusDir, port string, more ...string) {
	l := m.lab
	l.t.Helper()
	log, err := os.Create(filepath.Join(m.dir, "nginx-"+port+".err"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{filepath.Join(l.w.scripts, "serve-upstream"), "-a", m.ip, "-p", port, "-l", filepath.Join(m.dir, "nginx-"+port+".log")}, more...)
	cmd := l.command(context.Background(), "", fmt.Sprint(m.n), append(args, corpusDir)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go cmd.Wait() // lab-down ends it
}
