package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podrole/podrole/pkg/config"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// action is what a command does with its settings. It returns when ctx ends or something failed.
type action func(context.Context, config.Config, *slog.Logger) error

// program is the command line with what it touches of the world outside.
type program struct {
	run       action
	guard     action
	uninstall action
	version   string // of this program; see versionOf
	environ   []string
	hostname  func() (string, error)
	stdout    io.Writer
	stderr    io.Writer
}

// errFailed is the error of an action, which has been logged already. All other errors are the user's.
var errFailed = errors.New("failed")

// execute runs the command line args, without the program's name, and returns the exit code.
func (p *program) execute(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFailed):
		return exitFailed
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(p.stderr, "%s: %s\n", command.CommandPath(), line)
	}
	return exitUsage
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "podrole",
		Short: "AWS credentials per pod through the EC2 metadata endpoint",
		Long: `podrole gives every pod of a Kubernetes node the credentials of its own IAM role. Pods ask the EC2
metadata endpoint, 169.254.169.254, as any AWS SDK does by itself, and need not be changed.`,
		Example: `  # on a node of a cluster, normally from a DaemonSet
  podrole run --node-name "$NODE_NAME" --sts-region eu-central-1

  # on a host without a cluster, with pods described by YAML files
  podrole run --kube-objects ./objects --base-role-arn arn:aws:iam::111122223333:role/ --require-namespace-permission=false`,
		Version:           p.version, // in cobra's own form: a template brings reflection, and a binary of half as much more
		Args:              unknownCommand,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.AddCommand(
		p.command(config.ForRun(), p.run, &cobra.Command{
			Use:   "run",
			Short: "Run the agent of this node",
			Long: `Run the agent of this node: redirect the metadata address of its pods here and answer them, until SIGINT or
SIGTERM. The redirect stays when the agent ends, so that pods are refused instead of getting the node's credentials.
Needs root in the node's network namespace.`,
			Example: `  podrole run --node-name "$NODE_NAME" --sts-region eu-central-1`,
		}),
		p.command(config.ForGuard(), p.guard, &cobra.Command{
			Use:   "guard",
			Short: "Refuse pods the metadata service until an agent runs",
			Long: `Refuse pods the metadata address from now on, and leave the node itself its way there: all that is
needed before the first agent of a node that has just started. For a unit of the host that runs before the
kubelet, since pods may start before any agent does. It ends at once; what it does stays. Give the flags that podrole
run is given.`,
			Example: `  podrole guard`,
		}),
		p.command(config.ForUninstall(), p.uninstall, &cobra.Command{
			Use:   "uninstall",
			Short: "Remove what the agent leaves on the node",
			Long: `Remove the rules, the guard and the address that the agent leaves on the node when it ends, and what it kept in
--state-dir. Pods then reach the node's own metadata service again, with the node's role. Give the flags that podrole
run was given.`,
			Example: `  podrole uninstall --state-dir /run/podrole`,
		}),
		&cobra.Command{
			Use:   "version",
			Short: "Print the version",
			Args:  noArguments,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintln(p.stdout, p.versionLine())
				return err
			},
		},
	)
	return root
}

// command completes c with flags and with what it does.
func (p *program) command(flags *config.Flags, do action, c *cobra.Command) *cobra.Command {
	flags.AddTo(c.Flags())
	c.Args = noArguments
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flags.FlagError(err) })
	c.SetHelpFunc(func(c *cobra.Command, _ []string) {
		fmt.Fprintf(p.stdout, "%s\n\nUsage:\n  %s [flags]\n\nExample:\n%s\n\n", c.Long, c.CommandPath(), c.Example)
		if err := flags.WriteHelp(p.stdout); err != nil {
			fmt.Fprintln(p.stderr, err)
		}
	})
	c.RunE = func(c *cobra.Command, _ []string) error {
		// Without a host name the settings that fall back on it are reported as missing.
		hostname, _ := p.hostname()
		cfg, err := flags.Load(p.environ, hostname)
		if err != nil {
			return err
		}
		logger := p.logger(cfg.Observability)
		logger.Info("podrole starts", "command", c.Name(), "version", p.version, "go", runtime.Version())
		if err := do(c.Context(), cfg, logger); err != nil {
			logger.Error("podrole failed", "command", c.Name(), "error", err)
			return errFailed
		}
		return nil
	}
	return c
}

func (p *program) logger(o config.Observability) *slog.Logger {
	options := &slog.HandlerOptions{Level: o.LogLevel}
	if o.LogFormat == config.LogText {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}

// noArguments refuses arguments that are no flags.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("argument %q: not a flag; flags are written --NAME=VALUE", args[0])
	}
	return nil
}

// unknownCommand refuses arguments of the root command, which are commands that there are not.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := "podrole help lists all"
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = "did you mean " + near[0] + "?"
	}
	return fmt.Errorf("command %q: no such command; %s", args[0], remedy)
}

// versionLine is what the program says of itself: its version, the Go that built it, and for what.
func (p *program) versionLine() string {
	return fmt.Sprintf("podrole %s %s %s/%s", p.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// versionOf returns the version that a build was told, or if it was told none, that of the main module, which the go command
// takes from the repository's tags (https://go.dev/doc/go1.24#go-command).
func versionOf(told string) string {
	if told != "" {
		return told
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
