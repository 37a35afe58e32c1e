package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/podrole/podrole/internal/poll"
)

// Extent of the chart.
const (
	chartColumns = 90
	rowsPerTen   = 3 // rows for each factor of ten
	// chartFloor is the lowest row: what is below it is drawn there.
	chartFloor = 100 * time.Microsecond
)

// series is the samples of one client, drawn with one mark.
type series struct {
	name    string
	mark    rune
	samples []poll.Sample
}

// drawChart draws how long requests had to wait, over time: each column shows the longest wait in its span, on a
// logarithmic scale. A row of carets beneath marks when the first series got other credentials than before.
func drawChart(w io.Writer, all ...series) error {
	first, last := span(all)
	if !first.Before(last) {
		return fmt.Errorf("draw chart: no samples")
	}
	column := func(at time.Time) int {
		return int(float64(chartColumns-1) * float64(at.Sub(first)) / float64(last.Sub(first)))
	}
	highest := make([][]time.Duration, len(all))
	low, high := time.Hour, time.Duration(0)
	for i, s := range all {
		highest[i] = make([]time.Duration, chartColumns)
		for _, sample := range s.samples {
			c := column(sample.At)
			highest[i][c] = max(highest[i][c], sample.Took)
		}
		for _, took := range highest[i] {
			if took > 0 {
				low, high = min(low, took), max(high, took)
			}
		}
	}
	low = max(low, chartFloor)
	bottom, top := math.Floor(math.Log10(low.Seconds())), math.Ceil(math.Log10(high.Seconds()))
	rows := int(top-bottom) * rowsPerTen
	row := func(took time.Duration) int {
		return max(0, min(rows-1, int((math.Log10(took.Seconds())-bottom)*rowsPerTen)))
	}

	var b strings.Builder
	b.WriteString("   longest wait for credentials\n")
	for r := rows - 1; r >= 0; r-- {
		label := ""
		if r%rowsPerTen == 0 {
			label = time.Duration(math.Pow(10, bottom+float64(r/rowsPerTen)) * float64(time.Second)).String()
		}
		fmt.Fprintf(&b, "%8s │", label)
		line := []rune(strings.Repeat(" ", chartColumns))
		for i, s := range all {
			for c, took := range highest[i] {
				if took > 0 && row(took) == r {
					line[c] = s.mark
				}
			}
		}
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	fmt.Fprintf(&b, "%8s └%s\n", "", strings.Repeat("─", chartColumns))
	carets := []rune(strings.Repeat(" ", chartColumns))
	for _, at := range changes(all[0].samples) {
		carets[column(at)] = '^'
	}
	fmt.Fprintf(&b, "%8s  %s rotation\n", "", string(carets))
	fmt.Fprintf(&b, "%8s  0s%*s\n", "", chartColumns-2, last.Sub(first).Round(time.Second))
	for _, s := range all {
		fmt.Fprintf(&b, "%8c  %s\n", s.mark, s.name)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// span returns when the first and the last sample of all were taken.
func span(all []series) (first, last time.Time) {
	for _, s := range all {
		for _, sample := range s.samples {
			if first.IsZero() || sample.At.Before(first) {
				first = sample.At
			}
			if sample.At.After(last) {
				last = sample.At
			}
		}
	}
	return first, last
}

// changes returns when credentials were seen for the first time, but for the first ones.
func changes(samples []poll.Sample) []time.Time {
	seen := map[string]bool{}
	var times []time.Time
	for _, s := range samples {
		if s.Key == "" || seen[s.Key] {
			continue
		}
		if len(seen) > 0 {
			times = append(times, s.At)
		}
		seen[s.Key] = true
	}
	return times
}
