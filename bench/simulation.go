package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// simulationRepeats is how often the days are simulated.
const simulationRepeats = 3

// simulation measures how many calls to STS a Grant costs in an hour without faults: over two days of an ordinary node,
// which the cache's tests simulate.
func simulation(ctx context.Context, _ string) ([]figure, error) {
	const pkg, test = "./pkg/cache", "TestTwoDays"
	out, err := exec.CommandContext(ctx, "go", "test",
		"-run=^"+test+"$", "-v", "-count="+strconv.Itoa(simulationRepeats), pkg).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run %s of %s: %w: %s", test, pkg, err, out)
	}
	var calls []float64
	for _, match := range regexp.MustCompile(`\s([0-9.]+) per wanted grant and hour`).FindAllSubmatch(out, -1) {
		value, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", test, pkg, err)
		}
		calls = append(calls, value)
	}
	if len(calls) != simulationRepeats {
		return nil, fmt.Errorf("run %s of %s: %d figures, want %d: %s", test, pkg, len(calls), simulationRepeats, out)
	}
	return []figure{newFigure("sts_calls_per_grant_hour", "calls", calls)}, nil
}
