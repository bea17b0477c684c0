package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// AddFlags defines one flag for every key: --substituter-listen for substituter.listen, which may
// also be spelled with dots or underscores. Lists may be repeated or separated by commas. Values are
// only looked at by [Load].
func AddFlags(fs *pflag.FlagSet) {
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.NewReplacer(".", "-", "_", "-").Replace(name))
	})
	for _, k := range table() {
		v := &flagValue{kind: k.kind()}
		v.list = strings.HasPrefix(v.kind, "list")
		f := fs.VarPF(v, k.flag(), "", k.doc+" Default "+k.def+".")
		if v.kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// flagValue keeps the text until Load, which reports all problems together.
type flagValue struct {
	text string
	kind string
	list bool
}

// String implements pflag.Value.
func (v *flagValue) String() string { return v.text }

// Type implements pflag.Value; it is shown in the help.
func (v *flagValue) Type() string { return v.kind }

// Set implements pflag.Value.
func (v *flagValue) Set(s string) error {
	if v.list && v.text != "" {
		s = v.text + "," + s
	}
	v.text = s
	return nil
}

func flagText(fs *pflag.FlagSet, k *key) (string, bool) {
	if fs == nil {
		return "", false
	}
	f := fs.Lookup(k.flag())
	if f == nil || !f.Changed {
		return "", false
	}
	return f.Value.String(), true
}
