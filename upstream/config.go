package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/verify"
)

// Config says how to reach a cache. Only URL is required.
type Config struct {
	// URL is the cache's address, http or https, as in nix.conf's substituters. Nix's own parameters
	// (?priority=…) are ignored.
	URL string
	// HeadersFile names a file with a line "Name: value" for each header to send to URL's origin, such
	// as Authorization. Others must not be able to read it, nor its group to write it.
	HeadersFile string
	// NetrcFile names a netrc file, as Nix's netrc-file, with name and password for URL's host. It must
	// not be accessible to everybody.
	NetrcFile string
	// XZ is the absolute path of the xz program; "" looks in a few usual places, "none" decodes in Go.
	XZ string
	// CAFile adds certificate authorities (PEM). Those of NIX_SSL_CERT_FILE, SSL_CERT_FILE and the
	// system count always.
	CAFile string
	// StoreDir is the store directory that narinfos must name; "" is verify.DefaultStoreDir.
	StoreDir string
	// UserAgent is sent with every request; "" is "flurry".
	UserAgent string
	// Limit bounds the bytes per second that are received, with whom else it is given to; nil does not.
	Limit *throttle.Throttle
	// Log receives what an operator should know; nil discards.
	Log *slog.Logger
	// Timeouts bound every wait; zero fields take their defaults.
	Timeouts Timeouts
}

// Timeouts bound every wait for the network. The zero value of a field means its default.
type Timeouts struct {
	Connect       time.Duration // name resolution and TCP; default 3 s: what a SYN retransmitted once needs
	TLS           time.Duration // handshake; default 5 s
	NarInfo       time.Duration // until a narinfo's header, at most; default 5 s, lowered to NarInfoFloor on a fast link
	NarInfoFloor  time.Duration // what NarInfo is lowered to at most; default 2 s: a CDN's miss is slower than its hits
	Small         time.Duration // a narinfo's or nix-cache-info's body; default 10 s
	Header        time.Duration // until a NAR's header; default 10 s
	Idle          time.Duration // no byte of a body for so long means it stalled; default 10 s
	SlowWindow    time.Duration // in every such time spent waiting a body must bring minRate; default 60 s
	Forward       time.Duration // a forwarded answer as a whole; default 120 s
	StartWait     time.Duration // waits between attempts before a NAR's first byte, in all; default 10 s, as Nix itself spends about 5 s
	Retry         time.Duration // first wait before an attempt to continue; default 100 ms
	RetryMax      time.Duration // greatest such wait; default 3 s
	RetryAfterMax time.Duration // greatest Retry-After obeyed; default 60 s
	BreakerMin    time.Duration // first pause after a failed connection; default 1 s
	BreakerMax    time.Duration // greatest pause; default 3 s: until a cache that is back is asked again, paths that only it has are misses
}

func (t *Timeouts) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Connect, 3 * time.Second},
		{&t.TLS, 5 * time.Second},
		{&t.NarInfo, 5 * time.Second},
		{&t.NarInfoFloor, 2 * time.Second},
		{&t.Small, 10 * time.Second},
		{&t.Header, 10 * time.Second},
		{&t.Idle, 10 * time.Second},
		{&t.SlowWindow, 60 * time.Second},
		{&t.Forward, 120 * time.Second},
		{&t.StartWait, 10 * time.Second},
		{&t.Retry, 100 * time.Millisecond},
		{&t.RetryMax, 3 * time.Second},
		{&t.RetryAfterMax, 60 * time.Second},
		{&t.BreakerMin, time.Second},
		{&t.BreakerMax, 3 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	t.NarInfoFloor = min(t.NarInfoFloor, t.NarInfo)
}

// New makes a client of the cache at cfg.URL, whose narinfos must be signed by one of keys. It reads
// the files that cfg names and sends nothing. Errors name the setting and the remedy.
func New(cfg Config, keys *verify.Keys) (*Client, error) {
	base, userinfo, err := parseBase(cfg.URL)
	if err != nil {
		return nil, err
	}
	if keys == nil || keys.Len() == 0 {
		return nil, fmt.Errorf("upstream %s: no keys: nothing from it could be trusted; set the upstream's keys", base)
	}
	c := &Client{base: base, keys: keys, storeDir: cfg.StoreDir, agent: cfg.UserAgent, limit: cfg.Limit, log: cfg.Log, t: cfg.Timeouts}
	if c.storeDir == "" {
		c.storeDir = verify.DefaultStoreDir
	}
	if c.agent == "" {
		c.agent = "flurry"
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("upstream", base.Redacted())
	c.t.setDefaults()
	c.breaker.init(c.t.BreakerMin, c.t.BreakerMax)
	if c.secrets, err = readHeaders(cfg.HeadersFile); err != nil {
		return nil, fmt.Errorf("upstream %s: headers_file %s: %w", base, cfg.HeadersFile, err)
	}
	if err := c.addNetrc(cfg.NetrcFile); err != nil {
		return nil, fmt.Errorf("upstream %s: netrc_file %s: %w", base, cfg.NetrcFile, err)
	}
	if userinfo != nil && c.secrets.Get("Authorization") == "" {
		pass, _ := userinfo.Password()
		r := http.Request{Header: c.secrets}
		r.SetBasicAuth(userinfo.Username(), pass)
	}
	if c.xz.path, c.xz.why, err = findXZ(cfg.XZ); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", base, err)
	}
	roots, err := loadRoots(cfg.CAFile, c.log)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", base, err)
	}
	c.setTransport(roots)
	if len(c.secrets) > 0 && base.Scheme == "http" && reachOfHost(base.Hostname()) != reachLoopback {
		c.log.Warn("credentials go over the network in the clear; use https")
	}
	return c, nil
}

func (c *Client) addNetrc(file string) error {
	if file == "" {
		return nil
	}
	if c.secrets.Get("Authorization") != "" {
		return errors.New("headers_file has an Authorization too; leave one of them out")
	}
	found, err := readNetrc(file, c.base.Hostname())
	if err != nil {
		return err
	}
	r := http.Request{Header: c.secrets}
	r.SetBasicAuth(found.login, found.password)
	return nil
}

// parseBase returns the cache's URL without credentials, query and trailing slashes.
func parseBase(s string) (*url.URL, *url.Userinfo, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil { // the error would quote s, which may hold a password
		return nil, nil, errors.New("upstream url: not a URL; want something like https://cache.nixos.org")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" {
		return nil, nil, fmt.Errorf("upstream url %.80q: want http://host or https://host, such as https://cache.nixos.org", u.Redacted())
	}
	user := u.User
	return &url.URL{
		Scheme:  u.Scheme,
		Host:    strings.ToLower(u.Host),
		Path:    strings.TrimRight(u.Path, "/"),
		RawPath: strings.TrimRight(u.RawPath, "/"),
	}, user, nil
}

// maxSecretFile bounds a file of secrets, in bytes; a token has some kilobytes at most.
const maxSecretFile = 64 << 10

// readSecret reads a file that holds secrets. Its errors never quote the file.
func readSecret(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, bareError(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, bareError(err)
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if st.Mode().Perm()&0o006 != 0 {
		return nil, fmt.Errorf("accessible to everybody (mode %04o) though it holds secrets; chmod it to 0640 or less", st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, bareError(err)
	}
	if len(b) > maxSecretFile {
		return nil, fmt.Errorf("more than %d bytes; it should hold a few lines", maxSecretFile)
	}
	return b, nil
}

// readHeaders reads "Name: value" lines. Its errors never quote the file.
func readHeaders(file string) (http.Header, error) {
	h := http.Header{}
	if file == "" {
		return h, nil
	}
	b, err := readSecret(file)
	if err != nil {
		return nil, err
	}
	for i, line := range bytes.Split(b, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, ":")
		value = strings.TrimSpace(value)
		if !ok || !validHeader(name, value) {
			return nil, fmt.Errorf("line %d is not of the form \"Name: value\"", i+1)
		}
		if reservedHeader(name) {
			return nil, fmt.Errorf("line %d sets a header that the agent sets itself; remove it", i+1)
		}
		h.Add(name, value)
	}
	return h, nil
}

// bareError drops the path from a file error, which the caller names already.
func bareError(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func validHeader(name, value string) bool {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return name != ""
}

func reservedHeader(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Host", "Range", "If-Range", "Connection", "Content-Length", "Transfer-Encoding", "Accept-Encoding", "Te", "Trailer", "Upgrade":
		return true
	}
	return false
}

// xzPlaces are where the xz program is looked for. PATH is not consulted: it is whatever started the agent.
var xzPlaces = [...]string{"/usr/bin/xz", "/run/current-system/sw/bin/xz", "/bin/xz"}

// findXZ returns the program's path, or "" and why Go decodes instead.
func findXZ(setting string) (path, why string, err error) {
	switch {
	case setting == "none":
		return "", "so configured", nil
	case setting == "":
		for _, p := range xzPlaces {
			if executable(p) {
				return p, "", nil
			}
		}
		return "", "no xz program at " + strings.Join(xzPlaces[:], ", "), nil
	case !filepath.IsAbs(setting):
		return "", "", fmt.Errorf("xz %q: want an absolute path, \"none\", or nothing", setting)
	case !executable(setting):
		return "", "", fmt.Errorf("xz %q: no such program; install it, or set \"none\" to decode in Go (slower)", setting)
	}
	return setting, "", nil
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}
