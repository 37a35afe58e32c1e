// Bench measures the project's figures and prints each as one line, "bench: NAME VALUE UNIT", and all of them as JSON.
//
// Figures that involve time are ratios of two things measured in turn in the same run, or medians over repeats; the
// lines that begin with a hash say how far the repeats were apart. A figure that cannot be measured is an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/podrole/podrole/internal/poll"
)

// longest bounds the whole run.
const longest = 20 * time.Minute

func main() {
	poll.Main()  // the pollers in the pods are this same program,
	loadMain()   // and so are the load
	serverMain() // and the bare server
	streamMain() // and the streams of noisy neighbours
	into := flag.String("json", "", "also write the figures to this `file`")
	only := flag.String("run", "", "measure only what has a title that matches this `regexp`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, longest)
	err := bench(ctx, os.Stdout, *only, *into)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one measured number: the median of its repeats, or the worst where a single one would be too many.
type figure struct {
	Name    string    `json:"name"`
	Value   float64   `json:"value"`
	Unit    string    `json:"unit"`
	Repeats []float64 `json:"repeats"`
}

func newFigure(name, unit string, repeats []float64) figure {
	sorted := slices.Sorted(slices.Values(repeats))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return figure{name, median, unit, repeats}
}

// newWorst is a figure that has to hold in every repeat.
func newWorst(name, unit string, repeats []float64) figure {
	return figure{name, slices.Max(repeats), unit, repeats}
}

func (f figure) print(w io.Writer) {
	fmt.Fprintf(w, "# %s: %.3g to %.3g in %d repeats\n", f.Name, slices.Min(f.Repeats), slices.Max(f.Repeats), len(f.Repeats))
	fmt.Fprintf(w, "bench: %s %.3f %s\n", f.Name, f.Value, f.Unit)
}

func bench(ctx context.Context, w io.Writer, only, into string) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("read -run: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run as root, for example with sudo make bench")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	agent := filepath.Join(filepath.Dir(self), "podrole")
	var all []figure
	for _, m := range []struct {
		what    string
		measure func(context.Context, string) ([]figure, error)
	}{
		{"the credential request, against a bare handler", imds(w)},
		{"a pod beside one that asks all the time, against the pod alone", noisyNeighbour},
		{"what a rotation costs, against STS in-line", rotations},
		{"what rotations cost under load, against the time beside them", spikes(w)},
		{"a restart with sessions", restart},
		{"many first requests at once, while STS is slow", waiters},
		{"calls to STS, over two simulated days", simulation},
		{"a pod's first request, before the API knows its address", firstCredential},
		{"what other programs do to the redirect, and when it is whole again", heals(w)},
		{"an agent that takes over from another, under load", updates},
		{"who is calling", resolve},
		{"memory, and how it grows with the cluster", memory},
	} {
		if !wanted.MatchString(m.what) {
			continue
		}
		fmt.Fprintf(w, "== %s\n", m.what)
		began := time.Now()
		figures, err := m.measure(ctx, agent)
		if err != nil {
			return fmt.Errorf("measure %s: %w", m.what, err)
		}
		for _, f := range figures {
			f.print(w)
		}
		fmt.Fprintf(w, "# that took %s\n", time.Since(began).Round(time.Second))
		all = append(all, figures...)
	}
	if len(all) == 0 {
		return fmt.Errorf("nothing measured: no title matches %q", only)
	}
	if into == "" {
		return nil
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(filepath.Clean(into), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
