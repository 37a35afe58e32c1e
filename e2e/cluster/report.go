package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report prints checks as they are made, and counts.
type report struct {
	w              io.Writer
	nodes          int
	checks, failed int
}

// suite begins a group of checks.
func (r *report) suite(name, about string) { fmt.Fprintf(r.w, "== %s: %s\n", name, about) }

// check makes a check. What it returns is printed beside it.
func (r *report) check(name string, make func() (note string, err error)) bool {
	began := time.Now()
	note, err := make()
	r.checks++
	verdict := "ok    "
	if err != nil {
		r.failed++
		verdict, note = "FAILED", strings.ReplaceAll(err.Error(), "\n", "\n          ")
	}
	if note != "" {
		note = ": " + note
	}
	fmt.Fprintf(r.w, "   %s %s%s (%s)\n", verdict, name, note, time.Since(began).Round(10*time.Millisecond))
	return err == nil
}

// note prints a figure that is no check.
func (r *report) note(format string, args ...any) {
	fmt.Fprintf(r.w, "          "+format+"\n", args...)
}

// end prints the line of figures.
func (r *report) end(took time.Duration) error {
	fmt.Fprintf(r.w, "\ne2e: nodes=%d checks=%d failed=%d seconds=%.0f\n", r.nodes, r.checks, r.failed, took.Seconds())
	if r.failed > 0 {
		return errFailed
	}
	return nil
}
