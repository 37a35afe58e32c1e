package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// Fault is one setting that cannot be used. Its message is one line that names the setting, its value and the remedy.
type Fault struct {
	// Setting is the flag (--sts-rate) or the environment variable (PODROLE_STS_RATE) as the user gave it.
	Setting string
	// Value is what the user gave. It is nil when that is not the point: a flag that is missing, or that there is none.
	Value   *string
	Problem string // what is wrong
	Remedy  string // what to do
}

// Error implements error.
func (f *Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.Setting)
	if f.Value != nil {
		fmt.Fprintf(&b, " %q", *f.Value)
	}
	b.WriteString(": ")
	b.WriteString(f.Problem)
	if f.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(f.Remedy)
	}
	return b.String()
}

// FlagError turns an error of pflag's parser into a [*Fault]. Other errors it returns as they are. It has the form that
// cobra's SetFlagErrorFunc wants, but for the command.
func (f *Flags) FlagError(err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if e.GetSpecifiedShortnames() != "" {
			return &Fault{Setting: "-" + e.GetSpecifiedName(), Problem: "no such flag", Remedy: seeHelp}
		}
		return f.unknownFlag(e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		fault := &Fault{Setting: "--" + e.GetSpecifiedName(), Problem: "has no value", Remedy: seeHelp}
		if s := f.byName(e.GetSpecifiedName()); s != nil {
			fault.Remedy = "give " + s.want
		}
		return fault
	}
	if e, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return &Fault{Setting: e.GetSpecifiedFlag(), Problem: "not a flag", Remedy: "write --NAME=VALUE or --NAME VALUE"}
	}
	return err
}

const seeHelp = "--help lists all flags"

func (f *Flags) unknownFlag(name string) *Fault {
	fault := &Fault{Setting: "--" + name, Problem: "no such flag", Remedy: seeHelp}
	var names []string
	for i := range f.settings {
		if f.applies(&f.settings[i]) {
			names = append(names, f.settings[i].name)
		} else if f.settings[i].name == name {
			fault.Problem = "no flag of this command"
		}
	}
	if near := nearest(name, names); near != "" {
		fault.Remedy = "did you mean --" + near + "?"
	}
	return fault
}

// nearest returns the candidate that is closest to name, or nothing when none is close enough to be a slip.
func nearest(name string, candidates []string) string {
	best, closest := "", max(2, len(name)/5)+1
	for _, c := range candidates {
		if d := distance(name, c); d < closest {
			best, closest = c, d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or replace that make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
