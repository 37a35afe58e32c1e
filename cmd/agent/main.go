// Podrole gives every pod of a Kubernetes node its own IAM role through the plain EC2 metadata endpoint. This package
// is its command line and nothing else: it reads flags and environment, makes the logger, turns signals into the end
// of a context, and ends the process, in one place, with
//
//	0  when all is well, also after SIGINT or SIGTERM
//	1  when the agent failed
//	2  when the command line or the environment was wrong: one line for each thing that is
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/podrole/podrole/pkg/agent"
)

// gcPercent makes collections five times rarer than Go's default of 100 does. One keeps the processor from requests for
// some milliseconds, as often as every 150 ms under load, which is what the slowest hundredth of them then waits for. It
// costs memory under load alone, of which GOMEMLIMIT is the bound.
const gcPercent = 500

// release is set by builds that see no repository, such as the image's: -ldflags "-X main.release=VERSION".
var release string

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// The second signal finds the default behaviour again and ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	p := program{
		run:       agent.Run,
		guard:     agent.Guard,
		uninstall: agent.Uninstall,
		version:   versionOf(release),
		environ:   os.Environ(),
		hostname:  os.Hostname,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
	}
	os.Exit(p.execute(ctx, os.Args[1:]))
}
