package config

import (
	"fmt"
	"io"
	"strings"
)

// helpWidth is where help text is wrapped.
const helpWidth = 100

// WriteHelp writes the flags of the command, by topic, as text for a terminal.
func (f *Flags) WriteHelp(w io.Writer) error {
	var b strings.Builder
	for _, t := range topics() {
		var rows []*setting
		for i := range f.settings {
			if s := &f.settings[i]; s.topic == t && f.applies(s) {
				rows = append(rows, s)
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s:\n", t)
		for _, s := range rows {
			head := "  --" + s.name
			if !s.isBool() {
				head += " " + s.value
			}
			fmt.Fprintf(&b, "%-36s default: %s\n", head, s.defaultText())
			wrap(&b, s.help, "      ", helpWidth)
		}
		b.WriteString("\n")
	}
	wrap(&b, rule(), "", helpWidth)
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteReference writes all settings as a Markdown page.
func WriteReference(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Flags of podrole run\n\n")
	wrap(&b, rule(), "", helpWidth)
	b.WriteString("\n")
	wrap(&b, "`podrole uninstall` has those marked with *, `podrole guard` those marked with †. A value that cannot be used stops the start with one line "+
		"that names the setting, the value and the remedy; so does a variable that begins with `"+variablePrefix+
		"` and is no setting.", "", helpWidth)
	f := ForRun()
	for _, t := range topics() {
		fmt.Fprintf(&b, "\n## %s\n\n| Flag | Value | Default | What it does |\n|---|---|---|---|\n", t)
		for i := range f.settings {
			s := &f.settings[i]
			if s.topic != t {
				continue
			}
			mark := ""
			switch {
			case s.beside == uninstall|guard:
				mark = " * †"
			case s.beside == uninstall:
				mark = " *"
			case s.beside == guard:
				mark = " †"
			}
			fmt.Fprintf(&b, "| `--%s`%s | %s | %s | %s |\n", s.name, mark, s.valueText(), s.defaultMarkdown(), s.help)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// rule says how flags and environment variables go together.
func rule() string {
	return "Each flag can be set by an environment variable of the same name: " + variablePrefix + "STS_ENDPOINT for " +
		"--sts-endpoint. The flag wins over the variable, the variable over the default. Durations are written as 90s, " +
		"15m or 1h30m. A flag without a value is switched on by its name alone and off by --NAME=false."
}

func (s *setting) valueText() string {
	if s.isBool() {
		return "true or false"
	}
	return s.value
}

func (s *setting) defaultText() string {
	if s.preset == "" {
		return s.unset
	}
	return s.preset
}

func (s *setting) defaultMarkdown() string {
	if s.preset == "" {
		return s.unset
	}
	return "`" + s.preset + "`"
}

// wrap writes text in lines of at most width columns, each behind indent.
func wrap(b *strings.Builder, text, indent string, width int) {
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
			b.WriteString(indent)
			column = len(indent)
		case column+1+len(word) > width:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}
