package config

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// variablePrefix begins the name of every environment variable of ours.
const variablePrefix = "PODROLE_"

// Flags are the settings of one command. The order of calls is AddTo, the parsing of the command line by the flag set,
// then Load, once. It is not safe for concurrent use.
type Flags struct {
	command  command
	config   *Config
	settings []setting
	given    map[string]*given // by flag name
}

// given is a [pflag.Value] that keeps what stood on the command line. Checking it is left to Load, so that all faults
// are found, those of environment variables included.
type given struct {
	text  string
	isSet bool
	kind  string
	join  bool // a repeated flag adds to a list
}

var _ pflag.Value = (*given)(nil)

// Set implements [pflag.Value].
func (g *given) Set(s string) error {
	if g.join && g.isSet {
		s = g.text + "," + s
	}
	g.text, g.isSet = s, true
	return nil
}

// String implements [pflag.Value].
func (g *given) String() string { return g.text }

// Type implements [pflag.Value].
func (g *given) Type() string { return g.kind }

// command is who has settings.
type command int

const (
	run command = 1 << iota
	uninstall
	guard
)

// ForRun returns the flags of podrole run: every setting.
func ForRun() *Flags { return newFlags(run) }

// ForUninstall returns the flags of podrole uninstall: those that tell which rules and addresses to remove, and how to
// log. Their meaning is that of podrole run. Other settings keep their zero value in the Config.
func ForUninstall() *Flags { return newFlags(uninstall) }

// ForGuard returns the flags of podrole guard: those that tell which addresses to guard, and how to log. Their meaning is
// that of podrole run. Other settings keep their zero value in the Config.
func ForGuard() *Flags { return newFlags(guard) }

func newFlags(cmd command) *Flags {
	c := new(Config)
	return &Flags{command: cmd, config: c, settings: table(c), given: make(map[string]*given)}
}

// applies tells whether the command has the setting.
func (f *Flags) applies(s *setting) bool { return f.command == run || s.beside&f.command != 0 }

func (f *Flags) byName(name string) *setting {
	if i := slices.IndexFunc(f.settings, func(s setting) bool { return s.name == name }); i >= 0 {
		return &f.settings[i]
	}
	return nil
}

// AddTo defines the flags in set.
func (f *Flags) AddTo(set *pflag.FlagSet) {
	set.SortFlags = false
	for i := range f.settings {
		s := &f.settings[i]
		if !f.applies(s) {
			continue
		}
		g := &given{text: s.preset, kind: "string", join: s.value == "LIST"}
		f.given[s.name] = g
		flag := set.VarPF(g, s.name, "", s.help)
		if s.isBool() {
			g.kind, flag.NoOptDefVal = "bool", "true"
		}
	}
}

// Load returns the Config that the flags, the environment (as [os.Environ] returns it) and the defaults make, in this
// order of precedence. A variable that is set and empty counts as given. The host's name stands in for --node-name
// where objects come from a folder; it may be empty. On failure the error joins a [*Fault] for each thing that is
// wrong.
func (f *Flags) Load(environ []string, hostname string) (Config, error) {
	variables := parseEnviron(environ)
	l := loader{flags: f, config: f.config, sources: make(map[string]source)}
	for _, fault := range f.unknownVariables(variables) {
		l.add(fault)
	}
	for i := range f.settings {
		if s := &f.settings[i]; f.applies(s) {
			l.read(s, variables)
		}
	}
	if f.command == run {
		l.checkCluster(hostname)
		l.checkRoles()
	}
	l.checkAddresses()
	if err := errors.Join(l.faults...); err != nil {
		return Config{}, err
	}
	return *f.config, nil
}

// Parse is AddTo, parsing and Load in one, for whoever has arguments but no command.
func (f *Flags) Parse(args, environ []string, hostname string) (Config, error) {
	set := pflag.NewFlagSet("podrole", pflag.ContinueOnError)
	set.Usage = func() {}
	f.AddTo(set)
	if err := set.Parse(args); err != nil {
		return Config{}, f.FlagError(err)
	}
	if set.NArg() > 0 {
		return Config{}, &Fault{Setting: "argument", Value: new(set.Arg(0)), Problem: "not a flag", Remedy: seeHelp}
	}
	return f.Load(environ, hostname)
}

// source is where a setting's value came from.
type source struct {
	name  string // flag or variable, as the user wrote it
	value string
	given bool // by the user; otherwise value is the default
	bad   bool // the value could not be read
}

// loader collects the faults of one Load.
type loader struct {
	flags   *Flags
	config  *Config
	sources map[string]source // by flag name
	faults  []error
}

func (l *loader) add(f *Fault) { l.faults = append(l.faults, f) }

// credentials are what a URL may hold before its host. They are not to be printed.
var credentials = regexp.MustCompile(`://.*@`)

// read finds the value of s and puts it into the Config.
func (l *loader) read(s *setting, variables map[string]string) {
	src := source{name: "--" + s.name, value: s.preset}
	if g := l.flags.given[s.name]; g != nil && g.isSet {
		src.value, src.given = g.text, true
	} else if v, ok := variables[s.variable()]; ok {
		src.name, src.value, src.given = s.variable(), v, true
	} else if v := variables[s.also]; v != "" {
		src.name, src.value, src.given = s.also, v, true
	}
	if err := s.parse(src.value); err != nil {
		src.bad = true
		shown := credentials.ReplaceAllLiteralString(src.value, "://xxxxx@")
		l.add(&Fault{Setting: src.name, Value: &shown, Problem: err.Error(), Remedy: "give " + s.want})
	}
	l.sources[s.name] = src
}

func parseEnviron(environ []string) map[string]string {
	variables := make(map[string]string, len(environ))
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok {
			variables[name] = value
		}
	}
	return variables
}

// unknownVariables finds the variables that look like ours and are not. The kubelet's variables for a Service whose
// name begins with podrole look like it too, and are none of the user's doing.
func (f *Flags) unknownVariables(variables map[string]string) []*Fault {
	known := make([]string, len(f.settings))
	for i := range f.settings {
		known[i] = f.settings[i].variable()
	}
	var faults []*Fault
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if !strings.HasPrefix(name, variablePrefix) || slices.Contains(known, name) || isServiceLink(name, variables) {
			continue
		}
		fault := &Fault{Setting: name, Value: new(variables[name]), Problem: "no such setting",
			Remedy: "remove it; --help lists all settings"}
		if near := nearest(name, known); near != "" {
			fault.Remedy = "did you mean " + near + "?"
		}
		faults = append(faults, fault)
	}
	return faults
}

// isServiceLink tells whether the kubelet set the variable for a Service: one that goes with a variable
// SERVICE_SERVICE_HOST
// (https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables).
func isServiceLink(name string, variables map[string]string) bool {
	for host := range variables {
		service, ok := strings.CutSuffix(host, "_SERVICE_HOST")
		if !ok {
			continue
		}
		rest, ok := strings.CutPrefix(name, service+"_")
		if !ok {
			continue
		}
		if rest == "SERVICE_HOST" || rest == "SERVICE_PORT" || strings.HasPrefix(rest, "SERVICE_PORT_") ||
			rest == "PORT" || strings.HasPrefix(rest, "PORT_") {
			return true
		}
	}
	return false
}
