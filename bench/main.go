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
	into := flag.String("json", "", "also write the figures to this `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, longest)
	err := bench(ctx, os.Stdout, *into)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one measured number: the median of its repeats.
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

func (f figure) print(w io.Writer) {
	fmt.Fprintf(w, "# %s: %.3g to %.3g in %d repeats\n", f.Name, slices.Min(f.Repeats), slices.Max(f.Repeats), len(f.Repeats))
	fmt.Fprintf(w, "bench: %s %.3f %s\n", f.Name, f.Value, f.Unit)
}

func bench(ctx context.Context, w io.Writer, into string) error {
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
		{"the credential request, against a bare handler", imds},
		{"what a rotation costs, against STS in-line", rotations},
		{"a pod's first request, before the API knows its address", firstCredential},
		{"who is calling", resolve},
		{"memory, and how it grows with the cluster", memory},
	} {
		fmt.Fprintf(w, "== %s\n", m.what)
		figures, err := m.measure(ctx, agent)
		if err != nil {
			return fmt.Errorf("measure %s: %w", m.what, err)
		}
		for _, f := range figures {
			f.print(w)
		}
		all = append(all, figures...)
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
