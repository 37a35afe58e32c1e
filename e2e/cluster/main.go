// Cluster brings up a Kubernetes cluster of two nodes on one machine, installs the agent as its users do, from the image
// of the project's Dockerfile with `kubectl apply -k`, and checks with pods on both nodes what the project promises. It
// prints each check as it is made, and ends with one line of figures, and with status 1 if anything failed.
//
// What is built is kept in a folder of the user's cache, and built again when what it follows from has changed. Whatever
// runs, runs in a sandbox of namespaces: see package sandbox.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// Bounds of the whole: what is downloaded and built, and what is played.
const (
	prepareWithin = 45 * time.Minute
	playWithin    = 20 * time.Minute
)

// settings are the command line.
type settings struct {
	root  string // of the source tree
	cache string // where what is built is kept
	logs  string // folder for logs of everything
	only  string // glob of suites
	hold  bool   // keep the cluster at the end
}

func main() {
	sandbox.Main()
	var s settings
	flag.StringVar(&s.root, "root", ".", "`folder` of the source tree")
	flag.StringVar(&s.cache, "cache", "", "`folder` to keep what is built in (default podrole-cluster in the user's cache folder)")
	flag.StringVar(&s.logs, "logs", "", "`folder` for the logs (default cluster-logs beside this program)")
	flag.StringVar(&s.only, "only", "*", "play only suites whose name matches this `glob`")
	flag.BoolVar(&s.hold, "hold", false, "keep the cluster at the end, until Ctrl-C, and say how to look at it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := s.complete()
	if err == nil {
		if sandbox.Inside() {
			err = inside(ctx, s, os.Stdout)
		} else {
			err = outside(ctx, s, os.Stdout)
		}
	}
	stop()
	if err != nil && !errors.Is(err, sandbox.ErrFailed) && !errors.Is(err, errFailed) {
		fmt.Fprintln(os.Stderr, "cluster:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}

// outside prepares, with the machine's own network, and then has the rest done in a sandbox. It is called by main: the
// kernel ends what a thread started when the thread ends, and this one ends with the program.
func outside(ctx context.Context, s settings, w io.Writer) (err error) {
	runtime.LockOSThread()
	release, err := sandbox.Hold(w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	began := time.Now()
	preparing, cancel := context.WithTimeout(ctx, prepareWithin)
	defer cancel()
	if err := prepare(preparing, s, w); err != nil {
		return err
	}
	fmt.Fprintf(w, "   ready to play after %s; logs are in %s\n", time.Since(began).Round(time.Second), s.logs)
	if err := os.RemoveAll(s.logs); err != nil {
		return fmt.Errorf("remove logs of the last run: %w", err)
	}
	if err := os.MkdirAll(s.logs, 0o755); err != nil {
		return fmt.Errorf("create folder of logs: %w", err)
	}
	return sandbox.Run(ctx, os.Args[1:]...)
}

// complete checks what can be wrong, and fills in what depends on where the program stands.
func (s *settings) complete() error {
	if _, err := path.Match(s.only, ""); err != nil {
		return fmt.Errorf("read -only=%s: %w", s.only, err)
	}
	if s.logs == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own binary: %w", err)
		}
		s.logs = filepath.Join(filepath.Dir(self), "cluster-logs")
	}
	if s.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("find the user's cache folder: %w; name a folder with -cache", err)
		}
		s.cache = filepath.Join(user, "podrole-cluster")
	}
	for _, path := range []*string{&s.root, &s.cache, &s.logs} { // programs run elsewhere
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("find folder: %w", err)
		}
	}
	return nil
}
