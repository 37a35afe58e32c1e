package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// microRepeats is how often each Go benchmark is run.
const microRepeats = "7"

// resolve measures the two parts of finding out who is calling: what is in memory, and what the kernel is asked.
func resolve(ctx context.Context, _ string) ([]figure, error) {
	memory, err := goBenchmark(ctx, "./pkg/identity", "^BenchmarkResolve$")
	if err != nil {
		return nil, err
	}
	kernel, err := goBenchmark(ctx, "./pkg/node", "^BenchmarkLocate$/^own-interface-ipv4$")
	if err != nil {
		return nil, err
	}
	for i := range kernel {
		kernel[i] /= 1000
	}
	return []figure{newFigure("resolve_ns", "ns", memory), newFigure("source_check_us", "us", kernel)}, nil
}

// goBenchmark runs a Go benchmark and returns the nanoseconds per operation of each repeat.
func goBenchmark(ctx context.Context, pkg, pattern string) ([]float64, error) {
	out, err := exec.CommandContext(ctx, "go", "test",
		"-run=^$", "-bench="+pattern, "-benchtime=200ms", "-count="+microRepeats, pkg).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run benchmark %s of %s: %w: %s", pattern, pkg, err, out)
	}
	var values []float64
	for _, match := range regexp.MustCompile(`\s([0-9.]+) ns/op`).FindAllSubmatch(out, -1) {
		value, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return nil, fmt.Errorf("read benchmark %s of %s: %w", pattern, pkg, err)
		}
		values = append(values, value)
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("run benchmark %s of %s: it measured nothing: %s", pattern, pkg, out)
	}
	return values, nil
}
