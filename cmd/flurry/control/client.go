package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/flurry-nix/flurry/doctor"
	"github.com/flurry-nix/flurry/status"
)

const (
	maxAnswer     = 64 << 20         // bytes of JSON; a report with 10,000 peers is 5 MB
	answerTimeout = 30 * time.Second // for anything but a NAR; locating may ask an upstream
)

// Client asks a running agent. Safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// ErrNotThere says that the substituter answered 404.
var ErrNotThere = errors.New("not found")

// Dial finds the first socket that an agent answers on. The error says what to do.
func Dial(candidates []string) (*Client, error) {
	var denied []string
	for _, name := range candidates {
		c, err := net.DialTimeout("unix", name, dialTimeout)
		if err == nil {
			c.Close()
			return newClient(name), nil
		}
		if errors.Is(err, fs.ErrPermission) {
			denied = append(denied, name)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("cannot reach the agent: %w", err)
		}
	}
	if denied != nil {
		return nil, fmt.Errorf("not allowed to use %s; be root, the agent's user or a member of group %s", strings.Join(denied, ", "), Group)
	}
	return nil, fmt.Errorf(`no agent answers at %s; start one with "flurry agent", or name its socket with --socket`, strings.Join(candidates, " or "))
}

func newClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idleTimeout,
	}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Raw answers one of the JSON endpoints as it came, so that fields of a newer agent are not lost.
func (c *Client) Raw(ctx context.Context, method, path string, query url.Values) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.request(ctx, method, path, query, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("the agent's answer broke off: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("the agent's answer to %s is larger than %d MiB", path, maxAnswer>>20)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, failure(resp, body)
	}
	return body, nil
}

func failure(resp *http.Response, body []byte) error {
	var f Failure
	if json.Unmarshal(body, &f) == nil && f.Error != "" {
		return errors.New(f.Error)
	}
	return fmt.Errorf("the agent answered %s to %s", resp.Status, resp.Request.URL.Path)
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, offset int64) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "localhost", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the URL, whose host means nothing
		}
		return nil, fmt.Errorf("the agent at %s does not answer: %w", c.socket, err)
	}
	return resp, nil
}

func get[T any](ctx context.Context, c *Client, method, path string, query url.Values) (v T, err error) {
	raw, err := c.Raw(ctx, method, path, query)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("the agent's answer to %s makes no sense: %w", path, err)
	}
	return v, nil
}

// Status returns the whole report.
func (c *Client) Status(ctx context.Context) (status.Report, error) {
	return get[status.Report](ctx, c, http.MethodGet, "/status", nil)
}

// Peers returns the known peers.
func (c *Client) Peers(ctx context.Context) ([]status.Peer, error) {
	return get[[]status.Peer](ctx, c, http.MethodGet, "/peers", nil)
}

// Locate tells who has a path.
func (c *Client) Locate(ctx context.Context, t Target) (Location, error) {
	return get[Location](ctx, c, http.MethodGet, "/locate", url.Values{"path": {t.String()}})
}

// ID tells who the agent is.
func (c *Client) ID(ctx context.Context) (ID, error) {
	return get[ID](ctx, c, http.MethodGet, "/id", nil)
}

// Keys returns the keys that the agent trusts.
func (c *Client) Keys(ctx context.Context) (Keys, error) {
	return get[Keys](ctx, c, http.MethodGet, "/keys", nil)
}

// Doctor returns what the agent finds of what only it knows.
func (c *Client) Doctor(ctx context.Context) ([]doctor.Finding, error) {
	return get[[]doctor.Finding](ctx, c, http.MethodGet, "/doctor", nil)
}

// Pause stops sharing for d, or until resumed if d is 0.
func (c *Client) Pause(ctx context.Context, d time.Duration) (Sharing, error) {
	query := url.Values{}
	if d > 0 {
		query.Set("duration", d.String())
	}
	return get[Sharing](ctx, c, http.MethodPost, "/pause", query)
}

// Resume starts sharing again.
func (c *Client) Resume(ctx context.Context) (Sharing, error) {
	return get[Sharing](ctx, c, http.MethodPost, "/resume", nil)
}

// Login returns the status page's address with a new token.
func (c *Client) Login(ctx context.Context) (Dashboard, error) {
	return get[Dashboard](ctx, c, http.MethodPost, "/login", nil)
}

// Clear forgets a part of the agent's cache.
func (c *Client) Clear(ctx context.Context, what What) (Cleared, error) {
	return get[Cleared](ctx, c, http.MethodPost, "/cache/clear", url.Values{"what": {string(what)}})
}

// Cache reads a file of the substituter's binary cache from byte offset on. start is where the
// answer begins: offset, or 0 if the agent sent the whole. 404 gives [ErrNotThere]. The caller closes
// body and bounds what it reads.
func (c *Client) Cache(ctx context.Context, name string, offset int64) (body io.ReadCloser, start int64, err error) {
	resp, err := c.request(ctx, http.MethodGet, "/cache/"+name, nil, offset)
	if err != nil {
		return nil, 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.Body, 0, nil
	case http.StatusPartialContent:
		var first int64
		if _, serr := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first); serr == nil && first == offset {
			return resp.Body, offset, nil
		}
		err = fmt.Errorf("the agent sent another part of %s than it was asked for", name)
	case http.StatusNotFound:
		err = fmt.Errorf("%s: %w", name, ErrNotThere)
	default:
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // 4 KiB: an error message
		err = failure(resp, text)
	}
	resp.Body.Close()
	return nil, 0, err
}
