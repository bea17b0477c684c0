package cli

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/spf13/cobra"
)

func (a *App) dashboardCommand() *cobra.Command {
	var noOpen bool
	cmd := &cobra.Command{
		Use:   "dashboard",
		Short: "Print the status page's address with a login, and open it",
		Long: "Print the status page's address with a login token, and open it where there is a display.\n" +
			"The address works once and for two minutes; the browser stays logged in for twelve hours or until the agent restarts.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&noOpen, "no-open", false, "only print")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := c.Login(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Out, clean(d.URL))
		if opener := a.opener(); opener != "" && !noOpen && isTerminal(a.Out) {
			// What a browser has to say is none of ours; the address is printed.
			if cmd := exec.Command(opener, d.URL); cmd.Start() == nil {
				return cmd.Process.Release()
			}
		}
		return nil
	})
	return cmd
}

// opener is the program that shows an address to who sits at this machine, "" if nobody can see it.
func (a *App) opener() string {
	if runtime.GOOS == "darwin" {
		return "open"
	}
	if a.env("DISPLAY") == "" && a.env("WAYLAND_DISPLAY") == "" {
		return ""
	}
	return "xdg-open"
}
