package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/flurry-nix/flurry/config"
)

// genCommand writes what a package installs beside the program.
func (a *App) genCommand() *cobra.Command {
	gen := &cobra.Command{
		Use: "gen", Short: "Write man pages, completions or an example configuration", Hidden: true,
		Args: func(*cobra.Command, []string) error {
			return fmt.Errorf("say what to write: man, completion or config")
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args never lets it run
	}
	man := &cobra.Command{Use: "man DIR", Short: "Write man pages", Args: cobra.ExactArgs(1)}
	man.RunE = a.run(func(_ context.Context, args []string) error { return writeMan(man.Root(), args[0]) })
	completion := &cobra.Command{Use: "completion DIR", Short: "Write completions for bash, zsh and fish", Args: cobra.ExactArgs(1)}
	completion.RunE = a.run(func(_ context.Context, args []string) error { return writeCompletions(completion.Root(), args[0]) })
	example := &cobra.Command{
		Use: "config", Short: "Print an example configuration", Args: cobra.NoArgs,
		RunE: a.run(func(context.Context, []string) error {
			_, err := fmt.Fprint(a.Out, config.Example())
			return err
		}),
	}
	gen.AddCommand(man, completion, example)
	return gen
}

// writeMan writes flurry.1, one page per command, and flurry.toml.5. Their date is SOURCE_DATE_EPOCH's
// where that is set.
func writeMan(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Flurry", Manual: "Flurry Manual"}, dir); err != nil {
		return fmt.Errorf("write man pages: %w", err)
	}
	page := &cobra.Command{Use: "flurry.toml", Short: "configuration of the Flurry agent", Long: config.Markdown(),
		DisableAutoGenTag: true, Run: func(*cobra.Command, []string) {}}
	f, err := os.Create(filepath.Join(dir, "flurry.toml.5"))
	if err != nil {
		return err
	}
	err = doc.GenMan(page, &doc.GenManHeader{Title: "FLURRY.TOML", Section: "5", Source: "Flurry", Manual: "Flurry Manual"}, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func writeCompletions(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := root.GenBashCompletionFileV2(filepath.Join(dir, "flurry.bash"), true); err != nil {
		return err
	}
	if err := root.GenZshCompletionFile(filepath.Join(dir, "_flurry")); err != nil {
		return err
	}
	return root.GenFishCompletionFile(filepath.Join(dir, "flurry.fish"), true)
}
