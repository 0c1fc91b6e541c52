// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"fmt"
	"strings"
)

// table is one table of a rule set, as iptables-save prints it.
type table struct {
	name   string
	chains []string        // in order
	users  map[string]bool // chains that are not built in
	rules  []rule          // in order
}

// rule is one line of iptables-save.
type rule struct {
	chain   string
	spec    string // the text after the chain's name, as it was printed
	target  string // of -j or -g: a chain or an extension
	comment string // of -m comment
}

// incompatible is the message of iptables-nft-save for a table that it can't print.
const incompatible = "is incompatible, use 'nft' tool"

// parseTable parses one table. A line that it can't parse is an error.
func parseTable(name, text string) (*table, error) {
	t := &table{name: name, users: map[string]bool{}}
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#") && strings.Contains(line, incompatible):
			return nil, fmt.Errorf("read table %s: iptables can't print it: %s", name, strings.TrimSpace(line[1:]))
		case line == "" || strings.HasPrefix(line, "#"):
		case line == "*"+name:
			inside = true
		case line == "COMMIT":
			inside = false
		case !inside:
			return nil, fmt.Errorf("read table %s: %q is in no table of that name", name, line)
		case strings.HasPrefix(line, ":"):
			if err := t.addChain(line); err != nil {
				return nil, err
			}
		default:
			if err := t.addRule(line); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// addChain parses ":NAME POLICY [packets:bytes]". The policy of a chain that is not
// built in is "-".
func (t *table) addChain(line string) error {
	words := strings.Fields(line[1:])
	if len(words) < 2 {
		return fmt.Errorf("read table %s: %q does not declare a chain", t.name, line)
	}
	t.chains = append(t.chains, words[0])
	t.users[words[0]] = words[1] == "-"
	return nil
}

// addRule parses "-A CHAIN SPEC".
func (t *table) addRule(line string) error {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return fmt.Errorf("read table %s: %q is neither a chain nor a rule", t.name, line)
	}
	chain, spec, _ := strings.Cut(rest, " ")
	r := rule{chain: chain, spec: spec}
	words := splitWords(spec)
	for i := 0; i+1 < len(words); i++ {
		switch words[i] {
		case "-j", "-g", "--jump", "--goto":
			r.target = words[i+1]
		case "--comment":
			r.comment = words[i+1]
		default:
			continue
		}
		i++ // the value is not an option, even if it looks like one
	}
	t.rules = append(t.rules, r)
	return nil
}

// splitWords splits a rule into words. Words in double quotes may contain blanks, and
// there a backslash escapes the next character.
func splitWords(s string) []string {
	var words []string
	var word strings.Builder
	begun, quoted := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}
