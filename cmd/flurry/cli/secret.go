package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
)

// secretCommand makes the group's secret. It never replaces one: the group's other machines would be
// locked out, and nobody would see why.
func (a *App) secretCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "secret FILE",
		Short: "Make a group secret",
		Long: "Make a group secret of 256 random bits in FILE, which only its owner can read. Copy FILE to every machine of\n" +
			"the group, by a safe way, and name it in peers.secret_file: those machines then also share paths of caches\n" +
			"that are not public, with each other and with nobody else. \"-\" for FILE writes to standard output.",
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			if args[0] == "-" {
				_, err := io.WriteString(a.Out, a.Secret())
				return err
			}
			if err := writeSecret(args[0], a.Secret()); err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "%s: copy it to every machine of the group, readable by the agent alone, and set peers.secret_file\n", args[0])
			return nil
		}),
	}
}

// writeSecret makes a file of mode 0600 that is whole or not there.
func writeSecret(file, text string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already; a group has one secret: copy it, or remove it first", file)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(file)
	}
	return err
}
