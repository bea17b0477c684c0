package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// kind names a key's type in help and documentation.
func (k *key) kind() string {
	switch k.field(&Config{}, &Upstream{}).(type) {
	case *[]string, *[]netip.Prefix:
		return "list"
	case *bool:
		return "bool"
	case *int:
		return "number"
	case *Size:
		return "size"
	case *Rate:
		return "rate"
	case *time.Duration:
		return "time"
	case *slog.Level:
		return "level"
	}
	return "string"
}

// Example returns a configuration file that says nothing: every key with its default and what it
// does, commented out.
func Example() string {
	var b strings.Builder
	b.WriteString("# Configuration of the Flurry agent. Every key is optional; those below show their defaults.\n" +
		"# Without --config, the agent reads " + DefaultPath + " if it exists.\n" +
		"# Sizes: 8MiB, 2GB. Rates: 50Mbit/s, 6MB/s, unlimited. Times: 2s, 10m, 7d.\n")
	for _, s := range sections {
		header := "[" + s.name + "]"
		if s.name == "upstream" {
			header = "#[[upstream]]" // uncommented, it would be one that lacks its url
		}
		fmt.Fprintf(&b, "\n# %s\n%s\n", s.doc, header)
		for _, k := range table() {
			if k.section() == s.name {
				fmt.Fprintf(&b, "\n%s#%s = %s\n", comment(k.doc), k.last(), k.def)
			}
		}
	}
	return b.String()
}

// comment wraps text into lines of a comment.
func comment(text string) string {
	const width = 96 // columns
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}

// Markdown returns the reference of all keys, for a manual.
func Markdown() string {
	var b strings.Builder
	b.WriteString("A value comes from, strongest first: a flag, the environment, the file, the default. " +
		"A key *section.key* is the flag `--section-key` (dots and underscores are understood too) and the variable `FLURRY_SECTION_KEY`. " +
		"Lists on the command line are repeated or separated by commas. " +
		"Without `--config` (or `FLURRY_CONFIG`) the file is `" + DefaultPath + "`, if it exists. " +
		"Unknown keys are errors. Paths in the file are absolute.\n\n" +
		"Sizes: `8MiB`, `2GB`. Rates: `50Mbit/s`, `6MB/s`, `unlimited`. Times: `2s`, `10m`, `7d`.\n")
	for _, s := range sections {
		header := "[" + s.name + "]"
		if s.name == "upstream" {
			header = "[[upstream]]"
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", header, s.doc)
		for _, k := range table() {
			if k.section() == s.name {
				fmt.Fprintf(&b, "\n**%s** (%s, default `%s`)\n\n%s `--%s`, `%s`\n", k.last(), k.kind(), k.def, k.doc, k.flag(), k.env())
			}
		}
	}
	b.WriteString("\nOn the command line and in the environment, `upstream` keys describe one cache and replace the file's list; " +
		"several URLs share the other keys. Without a URL they complete the only cache there is.\n")
	return b.String()
}
