// Package cli is the command line: flags, help, exit status, and what a terminal shows. Commands ask
// the running agent over its control socket (package control); the agent itself is handed in as a
// function.
//
// It must never wire the agent, nor trust what the agent passes on: "fetch" verifies by itself, and
// text from peers reaches the terminal without control characters.
//
// Exit status: 0 well, 1 failed, 2 used wrongly. An error is one line: what, and what to do.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/supervise"
)

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

// ErrUsage marks what the user did wrong; wrap it to exit with status 2.
var ErrUsage = errors.New("used wrongly")

// AgentCall is what "flurry agent" was called with.
type AgentCall struct {
	Config *config.Config
	Socket string   // --socket, "" if not given: where control.Candidates says
	Args   []string // all arguments of the program, to start it again with
}

// App is the program. Agent, Secret and Version are required; the rest has the process's own as default.
type App struct {
	Agent   func(context.Context, AgentCall) error
	Version string
	Commit  string

	// WrongConfig may take the agent's place when its configuration is wrong; handled is false if the
	// program should say what is wrong and end. May be nil.
	WrongConfig func(ctx context.Context, problems []config.Problem) (handled bool, err error)

	// Secret returns a new group secret, as the file holds it.
	Secret func() string

	Out, Err io.Writer
	Env      []string // "NAME=value"

	args   []string
	socket string // --socket
	config string // --config
	ran    bool   // a command began its work; errors before that are misuse
}

// Main runs the command that args (without the program's name) name and returns the exit status.
func (a *App) Main(ctx context.Context, args []string) int {
	if a.Out == nil {
		a.Out = os.Stdout
	}
	if a.Err == nil {
		a.Err = os.Stderr
	}
	if a.Env == nil {
		a.Env = os.Environ()
	}
	a.args, a.ran = args, false
	root := a.root()
	root.SetArgs(args)
	return a.status(root.ExecuteContext(ctx))
}

// status reports err and returns the exit status for it.
func (a *App) status(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*supervise.ExitError](err); ok {
		return e.Code // the child said why
	}
	if e, ok := errors.AsType[*configError](err); ok {
		for _, p := range e.problems {
			fmt.Fprintln(a.Err, "flurry:", p.Error())
		}
		if supervise.IsChild() {
			return supervise.ExitConfig
		}
		return e.status
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.Err, "flurry: interrupted; the same command goes on where it was")
		return exitFailed
	}
	text := oneLine(err.Error())
	usage := !a.ran || errors.Is(err, ErrUsage)
	if usage {
		text = strings.TrimSuffix(text, ": "+ErrUsage.Error())
		if !strings.Contains(text, "--help") {
			text += `; see "flurry --help"`
		}
	}
	fmt.Fprintln(a.Err, "flurry:", text)
	if usage {
		return exitUsage
	}
	return exitFailed
}

// oneLine makes one line of text that cobra or the system spread over several.
func oneLine(s string) string {
	if head, tail, ok := strings.Cut(s, "\n\nDid you mean this?\n\t"); ok {
		s = head + "; did you mean " + strings.ReplaceAll(strings.TrimSpace(tail), "\n\t", " or ") + "?"
	}
	return clean(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\t' }), " "))
}

// configError is a configuration with problems.
type configError struct {
	problems []config.Problem
	status   int
}

// Error implements error.
func (e *configError) Error() string { return e.problems[0].Error() }

func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "flurry",
		Short: "Share Nix store paths with your neighbours",
		Long: "Flurry answers Nix on localhost as a binary cache, takes store paths from other machines nearby\n" +
			"where it can and from the central cache where it must, and accepts only what a trusted key signed.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.PersistentFlags().StringVar(&a.socket, "socket", a.env("FLURRY_SOCKET"), "the agent's control `socket` (default: "+control.SocketName+" in $RUNTIME_DIRECTORY, /run/flurry or the state directory)")
	root.PersistentFlags().StringVar(&a.config, "config", a.env("FLURRY_CONFIG"), "configuration `file` (default: "+config.DefaultPath+", if it exists)")
	root.AddCommand(a.agentCommand(), a.checkConfigCommand(), a.statusCommand(), a.peersCommand(), a.locateCommand(),
		a.fetchCommand(), a.doctorCommand(), a.idCommand(), a.pauseCommand(), a.resumeCommand(), a.cacheCommand(), a.secretCommand(), a.versionCommand(), a.genCommand(), a.dashboardCommand())
	return root
}

// run wraps a command's work, so that errors before it are known to be misuse.
func (a *App) run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.ran = true
		return f(cmd.Context(), args)
	}
}

func (a *App) env(name string) string {
	value := ""
	for _, e := range a.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

// dial connects to the running agent.
func (a *App) dial() (*control.Client, error) {
	if a.socket != "" {
		return control.Dial([]string{a.socket})
	}
	dir := config.DefaultStateDir(a.Env)
	if cfg, problems := config.Load(a.config, nil, a.Env); len(problems) == 0 {
		dir = cfg.State.Dir // a broken configuration is no reason not to ask a running agent
	}
	return control.Dial(control.Candidates(a.Env, dir))
}

func (a *App) agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent",
		Long: "Run the agent in the foreground, until SIGTERM. Every key of the configuration is also a flag\n" +
			"and a variable FLURRY_SECTION_KEY; a flag beats the environment, that beats the file.",
		Args: cobra.NoArgs,
	}
	config.AddFlags(cmd.Flags())
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		cfg, problems := config.Load(a.config, cmd.Flags(), a.Env)
		if len(problems) > 0 {
			if a.WrongConfig != nil {
				if handled, err := a.WrongConfig(ctx, problems); handled || err != nil {
					return err
				}
			}
			return &configError{problems, exitUsage}
		}
		return a.Agent(ctx, AgentCall{Config: cfg, Socket: a.socket, Args: a.args})
	})
	return cmd
}

func (a *App) checkConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Check the configuration",
		Long:  "Check the configuration that the agent would have: FILE, or the one it would read by itself, and the environment.\nEvery mistake is printed with its line and remedy.",
		Args:  cobra.MaximumNArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			path := a.config
			if len(args) == 1 {
				path = args[0]
			}
			cfg, problems := config.Load(path, nil, a.Env)
			if cfg != nil {
				problems = cfg.CheckFiles()
			}
			if len(problems) > 0 {
				return &configError{problems, exitFailed}
			}
			if path = cfg.Path; path == "" {
				path = "no configuration file; built-in defaults"
			}
			fmt.Fprintln(a.Out, path+": ok")
			return nil
		}),
	}
}

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version, commit and Go version", Args: cobra.NoArgs,
		RunE: a.run(func(context.Context, []string) error {
			commit := a.Commit
			if commit == "" {
				commit = "unknown"
			}
			fmt.Fprintf(a.Out, "flurry %s\ncommit %s\n%s %s/%s\n", a.Version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		}),
	}
}
