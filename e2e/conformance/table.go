package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// cell is what became of a scenario with a client.
type cell struct {
	note string // in the table
	err  error
}

// results are all cells. Its methods may be called concurrently.
type results struct {
	clients   []ready
	scenarios []scenario

	mu    sync.Mutex // guards the following
	cells map[string]map[string]cell
	leaks int
}

func newResults(clients []ready, scenarios ...[]scenario) *results {
	return &results{clients: clients, scenarios: slices.Concat(scenarios...), cells: map[string]map[string]cell{}}
}

// record fills a cell.
func (r *results) record(client, scenario, note string, err error) {
	if err != nil {
		note = "FAILED"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cells[client] == nil {
		r.cells[client] = map[string]cell{}
	}
	r.cells[client][scenario] = cell{note, err}
}

// absent reports whether a client does not take part in a scenario, and fills the cell if that is in its nature.
func (r *results) absent(c ready, scenario string) bool {
	if c.err != nil {
		return true
	}
	if _, lacks := c.lacks[scenario]; lacks {
		r.record(c.name, scenario, "n/a", nil)
		return true
	}
	return false
}

// print writes the table, what needs explaining, and the line of figures, and reports whether nothing failed.
func (r *results) print(w io.Writer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var notes []string // reasons of n/a, in order of appearance
	failed, played, absent := 0, 0, 0
	var problems []string

	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "client\tasks")
	for _, s := range r.scenarios {
		fmt.Fprint(table, "\t", s.name)
	}
	fmt.Fprintln(table)
	for _, c := range r.clients {
		fmt.Fprintf(table, "%s\t%s", c.name, c.asks)
		if c.err != nil {
			failed++
			problems = append(problems, fmt.Sprintf("%s is not installed: %v", c.name, c.err))
			fmt.Fprintln(table, strings.Repeat("\tFAILED", len(r.scenarios)))
			continue
		}
		for _, s := range r.scenarios {
			cell := r.cells[c.name][s.name]
			switch reason := c.lacks[s.name]; {
			case cell.err != nil:
				failed++
				problems = append(problems, fmt.Sprintf("%s, %s: %v", c.name, s.name, cell.err))
			case cell.note == "":
				failed++
				cell.note = "FAILED"
				problems = append(problems, fmt.Sprintf("%s, %s: not played", c.name, s.name))
			case cell.note == "n/a":
				absent++
				i := slices.Index(notes, reason)
				if i < 0 {
					i, notes = len(notes), append(notes, reason)
				}
				cell.note = fmt.Sprintf("n/a (%d)", i+1)
			default:
				played++
			}
			fmt.Fprint(table, "\t", cell.note)
		}
		fmt.Fprintln(table)
	}
	_ = table.Flush() // an error of w shows in the lines that follow, or nobody reads them

	fmt.Fprintln(w, "\nasks: what the first credentials take: T token, L list of roles, C credentials, R region, E container credentials endpoint")
	for _, s := range r.scenarios {
		fmt.Fprintf(w, "%s: %s\n", s.name, s.what)
	}
	for i, reason := range notes {
		fmt.Fprintf(w, "n/a (%d): the client %s\n", i+1, reason)
	}
	fmt.Fprintf(w, "played and as it should be: %d; n/a: %d\n", played, absent)
	if r.leaks > 0 {
		failed++
		problems = append(problems, fmt.Sprintf("packets of pods that reached the node's own metadata service: %d", r.leaks))
	}
	for _, p := range problems {
		fmt.Fprintln(w, "failed:", strings.TrimSpace(p))
	}
	fmt.Fprintf(w, "conformance: clients=%d scenarios=%d failed=%d\n", len(r.clients), len(r.scenarios), failed)
	return failed == 0
}
