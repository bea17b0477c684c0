// Package devtools drives a headless Chromium for tests, over the pipe that it opens for debuggers: no
// port, no library, no driver. Only what the tests need of the protocol is here.
//
// Protocol: https://chromedevtools.github.io/devtools-protocol/
package devtools

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// ErrNoBrowser says that no Chromium is installed.
var ErrNoBrowser = errors.New("no Chromium is installed: apt-get install chromium")

const stopGrace = 5 * time.Second

// Browser is a running Chromium. Safe for concurrent use.
type Browser struct {
	cmd   *exec.Cmd
	out   *os.File
	ended chan struct{} // closed when it can no longer be asked

	mu      sync.Mutex // guards all below
	next    int
	waiting map[int]chan message
	events  map[string]func(method string, params json.RawMessage) // by session
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// Start starts a browser that keeps what it must below dir and reaches for nothing by itself.
func Start(dir string) (*Browser, error) {
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome-stable"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		return nil, ErrNoBrowser
	}
	toBrowser, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in, fromBrowser, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b := &Browser{out: out, ended: make(chan struct{}), waiting: map[int]chan message{}, events: map[string]func(string, json.RawMessage){}}
	b.cmd = exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
		"--disable-extensions", "--disable-dev-shm-usage", "--disable-domain-reliability", "--metrics-recording-only",
		"--no-default-browser-check", "--password-store=basic", "--proxy-server=direct://", "--lang=en",
		"--user-data-dir="+dir, "--remote-debugging-pipe", "about:blank")
	b.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	b.cmd.ExtraFiles = []*os.File{toBrowser, fromBrowser} // 3 and 4
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = b.cmd.Start()
	toBrowser.Close()
	fromBrowser.Close()
	if err != nil {
		return nil, err
	}
	go b.read(in)
	return b, nil
}

// read hands out what the browser says, one message up to each NUL.
func (b *Browser) read(in *os.File) {
	defer close(b.ended)
	defer in.Close()
	r := bufio.NewReader(in)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			return
		}
		b.mu.Lock()
		answer, event := b.waiting[m.ID], b.events[m.Session]
		delete(b.waiting, m.ID)
		b.mu.Unlock()
		switch {
		case m.ID != 0 && answer != nil:
			answer <- m
		case m.Method != "" && event != nil:
			event(m.Method, m.Params)
		}
	}
}

// call asks for one method of the protocol; result may be nil.
func (b *Browser) call(ctx context.Context, session, method string, params, result any) error {
	raw, err := json.Marshal(params)
	if err != nil {
		return err
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	b.next++
	id := b.next
	b.waiting[id] = answer
	text, err := json.Marshal(message{ID: id, Session: session, Method: method, Params: raw})
	if err == nil {
		_, err = b.out.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Result, result)
	case <-b.ended:
		return fmt.Errorf("%s: the browser is gone", method)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

// Close ends the browser and all its processes.
func (b *Browser) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	b.call(ctx, "", "Browser.close", struct{}{}, nil)
	select {
	case <-b.ended:
	case <-ctx.Done():
	}
	syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	b.cmd.Wait()
	b.out.Close()
}

// Page is one tab, whose state nobody else shares.
type Page struct {
	b       *Browser
	session string
}

// Open makes an empty tab with cookies of its own; event, if not nil, is told what happens in it and
// must not call back.
func (b *Browser) Open(ctx context.Context, event func(method string, params json.RawMessage)) (*Page, error) {
	var made struct{ BrowserContextID, TargetID, SessionID string }
	if err := b.call(ctx, "", "Target.createBrowserContext", struct{}{}, &made); err != nil {
		return nil, err
	}
	if err := b.call(ctx, "", "Target.createTarget", map[string]any{"url": "about:blank", "browserContextId": made.BrowserContextID}, &made); err != nil {
		return nil, err
	}
	if err := b.call(ctx, "", "Target.attachToTarget", map[string]any{"targetId": made.TargetID, "flatten": true}, &made); err != nil {
		return nil, err
	}
	if event != nil {
		b.mu.Lock()
		b.events[made.SessionID] = event
		b.mu.Unlock()
	}
	p := &Page{b, made.SessionID}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network", "Accessibility"} {
		if err := p.Call(ctx, domain+".enable", nil, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Call asks for one method of the protocol in this tab; params and result may be nil.
func (p *Page) Call(ctx context.Context, method string, params map[string]any, result any) error {
	if params == nil {
		params = map[string]any{}
	}
	return p.b.call(ctx, p.session, method, params, result)
}

// Eval evaluates a JavaScript expression, waits if it is a promise, and decodes what it gives as JSON.
func (p *Page) Eval(ctx context.Context, expression string, result any) error {
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := p.Call(ctx, "Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &got)
	if err != nil {
		return err
	}
	if e := got.ExceptionDetails; e != nil {
		return fmt.Errorf("%s %s", e.Text, e.Exception.Description)
	}
	if result == nil || len(got.Result.Value) == 0 {
		return nil
	}
	return json.Unmarshal(got.Result.Value, result)
}

// Screenshot returns the whole page, not only the visible part, as PNG.
func (p *Page) Screenshot(ctx context.Context) ([]byte, error) {
	var got struct{ Data []byte }
	err := p.Call(ctx, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &got)
	return got.Data, err
}
