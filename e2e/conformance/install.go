package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// kit is how a client is installed.
type kit struct {
	// packages are those of the distribution that it needs, each as PACKAGE:COMMAND for tools/install.
	packages []string
	// inputs are the files, below the folder of sources, that what is installed follows from.
	inputs func(client) []string
	// make installs into an empty folder. nil: there is nothing to do but the packages.
	make func(ctx context.Context, s settings, c client, into string) error
	// command starts the client; folder is where make installed it.
	command func(s settings, folder string) []string
}

// ready is a client with what became of its installation.
type ready struct {
	client
	command []string
	err     error
}

// goKit builds a program of the module in folder go with the client's lock, in which all versions are pinned.
func goKit(program string) kit {
	lock := func(c client) string { return filepath.Join("locks", c.name+".mod") }
	return kit{
		inputs: func(c client) []string {
			return []string{
				"go/go.mod", "go/talk/talk.go", "go/" + program + "/main.go",
				"go/" + lock(c), "go/" + strings.TrimSuffix(lock(c), ".mod") + ".sum",
			}
		},
		make: func(ctx context.Context, s settings, c client, into string) error {
			cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-modfile="+lock(c),
				"-o", filepath.Join(into, "client"), "./"+program)
			cmd.Dir = filepath.Join(s.source, "go")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
			return run(cmd)
		},
		command: func(_ settings, folder string) []string { return []string{filepath.Join(folder, "client")} },
	}
}

// npmKit installs the packages of the client's lock beside a program of folder js.
func npmKit(program string) kit {
	return kit{
		packages: []string{"nodejs:node", "npm:npm"},
		inputs: func(c client) []string {
			return []string{
				"js/talk.js", "js/" + program,
				"js/locks/" + c.name + "/package.json", "js/locks/" + c.name + "/package-lock.json",
			}
		},
		make: func(ctx context.Context, s settings, c client, into string) error {
			for _, file := range c.kit.inputs(c) {
				text, err := os.ReadFile(filepath.Join(s.source, file))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(into, filepath.Base(file)), text, 0o600); err != nil {
					return err
				}
			}
			cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
			cmd.Dir = into
			return run(cmd)
		},
		command: func(_ settings, folder string) []string {
			return []string{"node", "--no-warnings", filepath.Join(folder, program)}
		},
	}
}

// pythonKit runs a program of folder python with the distribution's Python and a package of it.
func pythonKit(program, library string) kit {
	return kit{
		packages: []string{library + ":" + library},
		command: func(s settings, _ string) []string {
			// Without warnings of old code, and without leaving compiled files in the tree.
			return []string{"/usr/bin/python3", "-B", "-W", "ignore", filepath.Join(s.source, "python", program)}
		},
	}
}

// rubyKit runs a program of folder ruby with the distribution's Ruby and a package of it.
func rubyKit(program, library string) kit {
	return kit{
		packages: []string{library + ":" + library},
		command: func(s settings, _ string) []string {
			return []string{"/usr/bin/ruby", "-W0", filepath.Join(s.source, "ruby", program)}
		},
	}
}

// shellKit runs a script of folder shell around a program of the distribution.
func shellKit(script, program string) kit {
	return kit{
		packages: []string{program + ":" + program},
		command: func(s settings, _ string) []string {
			return []string{"/bin/bash", filepath.Join(s.source, "shell", script)}
		},
	}
}

// install brings all clients onto the machine and starts each once. A client for which this fails comes back with the
// reason.
func install(ctx context.Context, s settings, clients []client, w io.Writer) ([]ready, error) {
	ctx, cancel := context.WithTimeout(ctx, installWithin)
	defer cancel()
	began := time.Now()
	fmt.Fprintf(w, "== %d clients, installed in %s (some minutes the first time)\n", len(clients), s.cache)
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return nil, fmt.Errorf("create cache: %w", err)
	}
	unlock, err := lockFolder(s.cache)
	if err != nil {
		return nil, err
	}
	defer unlock()

	done := make([]ready, len(clients))
	missing := map[int]error{} // clients of the distribution that do not start
	var mu sync.Mutex          // guards w and missing
	pool(s.parallel, len(clients), func(i int) {
		c := clients[i]
		done[i] = ready{client: c}
		r := &done[i]
		var fresh bool
		if r.command, fresh, r.err = c.provide(ctx, s); r.err == nil {
			r.err = starts(ctx, r.command)
		}
		mu.Lock()
		defer mu.Unlock()
		if r.err != nil && len(c.kit.packages) > 0 {
			missing[i] = r.err
			return
		}
		r.report(w, fresh)
	})
	if len(missing) > 0 {
		installPackages(ctx, clients, missing, w)
	}
	for i := range missing {
		r := &done[i]
		if r.command, _, r.err = r.provide(ctx, s); r.err == nil {
			r.err = starts(ctx, r.command)
		}
		r.report(w, true)
	}
	fmt.Fprintf(w, "   took %s\n", time.Since(began).Round(time.Second))
	return done, ctx.Err()
}

// report says what became of a client, unless it was there before.
func (r *ready) report(w io.Writer, fresh bool) {
	switch {
	case r.err != nil:
		fmt.Fprintf(w, "   %s: NOT INSTALLED: %v\n", r.name, r.err)
	case fresh:
		fmt.Fprintf(w, "   %s: installed\n", r.name)
	}
}

// installPackages installs what the distribution has of the missing clients: all at once, or else one client after the
// other, so that one that the distribution does not have costs the others nothing. What is still missing afterwards
// says so when it is started.
func installPackages(ctx context.Context, clients []client, missing map[int]error, w io.Writer) {
	var packages []string
	for i := range missing {
		packages = append(packages, clients[i].kit.packages...)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	command := func(packages []string) error {
		cmd := exec.CommandContext(ctx, "./tools/install", packages...)
		cmd.Stdout = w
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, tail(stderr.String()))
		}
		return nil
	}
	if command(packages) == nil {
		return
	}
	for i := range missing {
		if err := command(clients[i].kit.packages); err != nil {
			fmt.Fprintf(w, "   %s: %v\n", clients[i].name, err)
		}
	}
}

// provide returns the command of a client, whose files are made anew if what they follow from has changed.
func (c client) provide(ctx context.Context, s settings) (command []string, fresh bool, err error) {
	if c.kit.make == nil {
		return c.kit.command(s, ""), false, nil
	}
	sum, err := c.digest(s)
	if err != nil {
		return nil, false, err
	}
	parent := filepath.Join(s.cache, c.name)
	folder := filepath.Join(parent, sum)
	if _, err := os.Stat(folder); err == nil {
		return c.kit.command(s, folder), false, nil
	}
	// What an earlier version or a run that was cut short left goes; a folder has its name once it is whole.
	if err := os.RemoveAll(parent); err != nil {
		return nil, false, fmt.Errorf("clean cache: %w", err)
	}
	unfinished := filepath.Join(parent, "unfinished")
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return nil, false, fmt.Errorf("create cache: %w", err)
	}
	if err := c.kit.make(ctx, s, c, unfinished); err != nil {
		return nil, false, err
	}
	if err := os.Rename(unfinished, folder); err != nil {
		return nil, false, fmt.Errorf("fill cache: %w", err)
	}
	return c.kit.command(s, folder), true, nil
}

// digest identifies what a client is made from.
func (c client) digest(s settings) (string, error) {
	h := sha256.New()
	for _, file := range c.kit.inputs(c) {
		text, err := os.ReadFile(filepath.Join(s.source, file))
		if err != nil {
			return "", fmt.Errorf("read what the client is made from: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n%s", file, len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// starts runs a client that is asked nothing.
func starts(ctx context.Context, command []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(slices.Clip(command[1:]), "http://127.0.0.1:1", "none")...)
	cmd.Env = environment("/nonexistent")
	return run(cmd)
}

// environment is all that a client has: no AWS setting, and no home with any. System programs come first: the clients
// of the distribution are meant.
func environment(home string) []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8"}
}

// run runs a command and returns what it said if it failed.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, tail(string(out)))
	}
	return nil
}

// tail returns the last of what a program said, on one line.
func tail(text string) string {
	const most = 600
	line := strings.Join(strings.Fields(text), " ")
	if len(line) > most {
		line = "… " + strings.ToValidUTF8(line[len(line)-most:], "")
	}
	return line
}

// lockFolder waits until no other process has the folder.
func lockFolder(path string) (unlock func(), err error) {
	folder, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock cache: %w", err), folder.Close())
	}
	return func() { _ = folder.Close() }, nil // closing releases
}

// pool calls work for 0 to n-1, with width of them at the same time, and returns when all have ended.
func pool(width, n int, work func(i int)) {
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(width, n) {
		workers.Go(func() {
			for i := range next {
				work(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}
