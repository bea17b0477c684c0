package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// assignment is one key's value, as found in the file.
type assignment struct {
	key      string
	upstream int // index into upstreams, where the key is one of theirs
	val      raw
}

// decoder turns TOML into assignments. It works on the parser's expressions, because decoding into a
// struct reports neither more than one error nor where a value stood.
type decoder struct {
	file     string
	data     []byte
	lines    []int // offset of each line's first byte
	base     int   // offset of the parser's input in data
	parser   unstable.Parser
	names    []string // of all keys
	current  []string // table that the next keys belong to
	skip     bool     // the current table is unknown, and was reported
	upstream int      // index of the upstream that the next keys belong to
	seen     map[string]int

	sets       []assignment
	upstreams  []origin
	noUpstream origin // of "upstream = []"
	problems   []Problem
}

func newDecoder(file string, data []byte) *decoder {
	d := &decoder{file: file, data: slices.Clip(bytes.Clone(data)), lines: []int{0}, seen: map[string]int{}}
	for i, b := range d.data {
		if b == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	for _, k := range table() {
		d.names = append(d.names, k.name)
	}
	return d
}

func (d *decoder) at(offset int) origin {
	line, exact := slices.BinarySearch(d.lines, offset)
	if exact {
		line++
	}
	return origin{file: d.file, line: line}
}

func (d *decoder) nodeAt(n *unstable.Node) origin { return d.at(d.base + int(n.Raw.Offset)) }

func (d *decoder) problem(at origin, key, what, remedy string) {
	d.problems = append(d.problems, Problem{Where: at.String(), Key: key, What: what, Remedy: remedy, line: at.line})
}

// decode reads everything, going on behind a syntax error where the next key or table begins.
func (d *decoder) decode() {
	for d.base < len(d.data) {
		d.parser.Reset(d.data[d.base:])
		for d.parser.NextExpression() {
			d.expression(d.parser.Expression())
		}
		err := d.parser.Error()
		if err == nil {
			break
		}
		d.syntaxError(err)
	}
	if len(d.problems) > 0 {
		return
	}
	var strict map[string]any // what only the whole document can violate, such as a table defined twice
	if err := toml.Unmarshal(d.data, &strict); err != nil {
		at := origin{file: d.file, line: 1}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			at.line, _ = de.Position()
		}
		d.problem(at, "", strings.TrimPrefix(err.Error(), "toml: "), "see https://toml.io")
	}
}

// nextStart matches where a new expression probably begins.
var nextStart = regexp.MustCompile(`(?m)^[ \t]*(\[|[A-Za-z0-9_.-]+[ \t]*=)`)

func (d *decoder) syntaxError(err error) {
	offset := len(d.data)
	if pe, ok := errors.AsType[*unstable.ParserError](err); ok && len(pe.Highlight) > 0 {
		offset = d.base + int(d.parser.Range(pe.Highlight).Offset)
	}
	at := d.at(max(0, min(offset, len(d.data)-1)))
	d.problem(at, "", "not TOML: "+strings.TrimPrefix(err.Error(), "toml: "), "see https://toml.io; strings need quotes")
	lineStart, lineEnd := d.lines[at.line-1], len(d.data)
	if at.line < len(d.lines) {
		lineEnd = d.lines[at.line]
	}
	if bytes.HasPrefix(bytes.TrimLeft(d.data[lineStart:lineEnd], " \t"), []byte("[")) {
		d.current, d.skip = nil, true // whose keys follow is not known
	}
	d.base = len(d.data)
	if next := nextStart.FindIndex(d.data[lineEnd:]); next != nil {
		d.base = lineEnd + next[0]
	}
}

func (d *decoder) expression(n *unstable.Node) {
	switch n.Kind {
	case unstable.Table, unstable.ArrayTable:
		d.header(n)
	case unstable.KeyValue:
		if !d.skip {
			d.keyValue(d.current, n)
		}
	}
}

func keyParts(n *unstable.Node) (parts []string, first *unstable.Node) {
	for it := n.Key(); it.Next(); {
		if first == nil {
			first = it.Node()
		}
		parts = append(parts, string(it.Node().Data))
	}
	return parts, first
}

func (d *decoder) header(n *unstable.Node) {
	parts, first := keyParts(n)
	name := strings.Join(parts, ".")
	at := d.nodeAt(first)
	d.current, d.skip = parts, false
	array := n.Kind == unstable.ArrayTable
	switch {
	case name == "upstream" && array:
		d.newUpstream(at)
	case name == "upstream":
		d.skip = true
		d.problem(at, name, "there may be several", "write [[upstream]]")
	case !isSection(name):
		d.skip = true
		d.problem(at, name, "unknown section", didYouMean(name, sectionNames(), "known are "+strings.Join(sectionNames(), ", ")))
	case array:
		d.skip = true
		d.problem(at, name, "there is only one", "write ["+name+"]")
	}
}

func (d *decoder) newUpstream(at origin) {
	d.upstreams = append(d.upstreams, at)
	d.upstream = len(d.upstreams) - 1
}

func isSection(name string) bool { return slices.Contains(sectionNames(), name) }

func sectionNames() (names []string) {
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

// keyValue takes one key = value, which may itself be a table.
func (d *decoder) keyValue(prefix []string, n *unstable.Node) {
	parts, first := keyParts(n)
	path := slices.Concat(prefix, parts)
	name := strings.Join(path, ".")
	at, value := d.nodeAt(first), n.Value()
	inUpstream := len(prefix) > 0 && prefix[0] == "upstream"
	switch {
	case name == "upstream":
		d.upstreamList(at, value)
	case path[0] == "upstream" && !inUpstream:
		d.problem(at, name, "there may be several upstreams", "write [[upstream]] and the keys below it")
	case value.Kind == unstable.InlineTable && isSection(name):
		d.inlineTable(path, value)
	case !slices.Contains(d.names, name):
		d.problem(at, name, "unknown key", didYouMean(name, d.names, `"flurry agent --help" lists them`))
	default:
		id := name
		if inUpstream {
			id = upstreamOrigin(d.upstream, name)
		}
		if line, ok := d.seen[id]; ok {
			d.problem(at, name, fmt.Sprintf("given twice, first in line %d", line), "leave one out")
			return
		}
		d.seen[id] = at.line
		d.sets = append(d.sets, assignment{name, d.upstream, d.value(value, at)})
	}
}

func (d *decoder) inlineTable(path []string, value *unstable.Node) {
	for it := value.Children(); it.Next(); {
		if it.Node().Kind == unstable.KeyValue {
			d.keyValue(path, it.Node())
		}
	}
}

// upstreamList takes upstream = [{…}, {…}].
func (d *decoder) upstreamList(at origin, value *unstable.Node) {
	if value.Kind != unstable.Array {
		d.problem(at, "upstream", "there may be several", "write [[upstream]]")
		return
	}
	count := 0
	for it := value.Children(); it.Next(); {
		switch it.Node().Kind {
		case unstable.Comment:
		case unstable.InlineTable:
			count++
			d.newUpstream(at)
			d.inlineTable([]string{"upstream"}, it.Node())
		default:
			count++
			d.problem(at, "upstream", "an upstream is a table", "write [[upstream]] and the keys below it")
		}
	}
	if count == 0 {
		d.noUpstream = at
	}
}

func (d *decoder) value(n *unstable.Node, at origin) raw {
	v := raw{kind: rawOther, text: string(n.Data), at: at}
	if n.Raw.Length > 0 {
		v.at = d.nodeAt(n)
	}
	switch n.Kind {
	case unstable.String:
		v.kind = rawString
	case unstable.Bool:
		v.kind = rawBool
	case unstable.Integer:
		if i, err := strconv.ParseInt(string(n.Data), 0, 64); err == nil {
			v.kind, v.text = rawInteger, strconv.FormatInt(i, 10)
		}
	case unstable.Array:
		v.kind, v.at = rawList, at
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.Comment {
				v.list = append(v.list, d.value(it.Node(), at))
			}
		}
	case unstable.InlineTable:
		v.text, v.at = "a table", at
	}
	return v
}
