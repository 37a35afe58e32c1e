// Conformance runs real, unchanged clients in the pods of a node in a box, where they find the metadata service at the
// address that is built into them, served by the agent as it ships and with a verifying AWS behind it. It plays
// scenarios with each of them, prints a table, and ends with one line of figures and with status 1 if anything failed.
//
// A client that cannot be installed has failed. What a client lacks by nature is n/a in the table, with the reason
// below it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Bounds of the whole: downloads, and what is played.
const (
	installWithin = 20 * time.Minute
	playWithin    = 10 * time.Minute
)

// settings are the command line.
type settings struct {
	source   string // folder of the clients' sources
	cache    string // where clients are installed
	agent    string // the agent's binary
	log      string // file for the agent's log
	parallel int    // clients at work at the same time
	only     string // glob of client names
}

func main() {
	var s settings
	flag.StringVar(&s.source, "source", "e2e/conformance", "`folder` of the clients' sources")
	flag.StringVar(&s.cache, "cache", "", "`folder` to install clients into (default podrole-conformance in the user's cache folder)")
	flag.StringVar(&s.agent, "agent", "", "the agent's `binary` (default podrole beside this one)")
	flag.IntVar(&s.parallel, "parallel", max(2, runtime.NumCPU()), "`number` of clients at work at the same time")
	flag.StringVar(&s.only, "only", "*", "play only clients whose name matches this `glob`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := conformance(ctx, s, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// conformance runs the whole and reports whether nothing failed.
func conformance(ctx context.Context, s settings, w io.Writer) (ok bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("network namespaces need root: run as root, for example with sudo make conformance")
	}
	if err := s.complete(); err != nil {
		return false, err
	}
	clients, err := choose(s.only)
	if err != nil {
		return false, err
	}
	installed, err := install(ctx, s, clients, w)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, playWithin)
	defer cancel()
	results, err := play(ctx, s, installed, w)
	if err != nil {
		return false, err
	}
	return results.print(w), nil
}

// complete fills in what depends on where the program stands.
func (s *settings) complete() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	if s.agent == "" {
		s.agent = filepath.Join(filepath.Dir(self), "podrole")
	}
	s.log = filepath.Join(filepath.Dir(self), "conformance-agent.log")
	if s.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("find the user's cache folder: %w; name a folder with -cache", err)
		}
		s.cache = filepath.Join(user, "podrole-conformance")
	}
	for _, path := range []*string{&s.source, &s.cache} { // clients run elsewhere
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("find folder: %w", err)
		}
	}
	return nil
}
