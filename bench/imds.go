package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"reflect"
	"regexp"
	"strconv"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	pairs       = 41 // the median of 11 moved by a twentieth from run to run
	perRun      = 4000
	workers     = 4
	credentials = "/latest/meta-data/iam/security-credentials/bench"
)

// bodySize is a size of session tokens, and of the answers with them.
type bodySize struct {
	name  string
	token int // characters
}

func bodySizes() []bodySize { return []bodySize{{"1.6 KB", 1280}, {"5 KB", 4680}} }

// imds compares the credential request, one connection each, with a bare handler that writes the same bytes and closes
// too, and counts what it allocates more. Of two sizes of answers, the worse one counts.
func imds(progress io.Writer) func(context.Context, string) ([]figure, error) {
	return func(ctx context.Context, agent string) ([]figure, error) {
		var throughput, p99 figure
		for i, size := range bodySizes() {
			t, p, err := imdsAt(ctx, agent, size)
			if err != nil {
				return nil, fmt.Errorf("at %s: %w", size.name, err)
			}
			fmt.Fprintf(progress, "# at %s: throughput ratio %.3f, p99 ratio %.3f\n", size.name, t.Value, p.Value)
			if i == 0 || t.Value < throughput.Value {
				throughput = t
			}
			if i == 0 || p.Value > p99.Value {
				p99 = p
			}
		}
		allocations, err := imdsAllocations(ctx)
		if err != nil {
			return nil, err
		}
		return []figure{throughput, p99, allocations}, nil
	}
}

// imdsAt compares at one size. The agent and the bare server take turns, and which one begins alternates. The agent is
// reached as pods reach it, through the redirect; the bare server directly.
func imdsAt(ctx context.Context, agent string, size bodySize) (throughput, p99 figure, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bed, pod, err := onePod(ctx, testbed.Config{
		Agent: agent, Under: onCPU(serverCPU), SessionTokenSize: size.token,
		Flags: []string{"--request-rate=1000000"}, // all the load is one pod's
	}, time.Hour)
	if err != nil {
		return figure{}, figure{}, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	said, err := get(ctx, pod, "http://169.254.169.254"+credentials)
	if err != nil {
		return figure{}, figure{}, err
	}
	bare, err := bareServer(ctx, bed.Box.Node, bed.Box.NodeIP.String(), said)
	if err != nil {
		return figure{}, figure{}, err
	}
	same, err := get(ctx, pod, "http://"+bare+credentials)
	if err != nil {
		return figure{}, figure{}, err
	}
	if !reflect.DeepEqual(same, said) {
		return figure{}, figure{}, fmt.Errorf("the bare handler answers %v instead of %v", same.Header, said.Header)
	}
	l := load{Path: credentials, Requests: perRun, Workers: workers, Body: len(said.Body)}
	ours, theirs := l, l
	ours.Address, theirs.Address = "169.254.169.254:80", bare
	for _, warmUp := range []load{ours, theirs} {
		if _, err := warmUp.run(ctx, pod); err != nil {
			return figure{}, figure{}, err
		}
	}
	var throughputs, p99s []float64
	for i := range pairs {
		var result [2]loadResult // ours, theirs
		for turn := range 2 {
			which := (i + turn) % 2
			if result[which], err = []load{ours, theirs}[which].run(ctx, pod); err != nil {
				return figure{}, figure{}, err
			}
		}
		throughputs = append(throughputs, result[0].PerSecond/result[1].PerSecond)
		p99s = append(p99s, float64(result[0].P99)/float64(result[1].P99))
	}
	return newFigure("imds_throughput_ratio", "ratio", throughputs), newFigure("imds_p99_ratio", "ratio", p99s), nil
}

// imdsAllocations counts what a credential request allocates beyond what net/http does: in package proxy, and in the
// question to the kernel where the source address lives. What else is asked is in memory and allocates nothing.
func imdsAllocations(ctx context.Context) (figure, error) {
	request, err := goMetric(ctx, "./pkg/proxy", "^BenchmarkAllocations$", "allocs/request")
	if err != nil {
		return figure{}, err
	}
	check, err := goMetric(ctx, "./pkg/node", "^BenchmarkLocate$/^own-interface-ipv4$", "allocs/op")
	if err != nil {
		return figure{}, err
	}
	var all []float64
	for i := range min(len(request), len(check)) {
		all = append(all, request[i]+check[i])
	}
	return newFigure("imds_allocs", "allocations", all), nil
}

// goMetric runs a Go benchmark and returns one of its metrics from each repeat.
func goMetric(ctx context.Context, pkg, pattern, unit string) ([]float64, error) {
	out, err := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench="+pattern, "-benchmem", "-benchtime=20x",
		"-count="+microRepeats, pkg).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run benchmark %s of %s: %w: %s", pattern, pkg, err, out)
	}
	var values []float64
	for _, match := range regexp.MustCompile(`\s([0-9.e+-]+) `+regexp.QuoteMeta(unit)+`\b`).FindAllSubmatch(out, -1) {
		value, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return nil, fmt.Errorf("read benchmark %s of %s: %w", pattern, pkg, err)
		}
		values = append(values, value)
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("run benchmark %s of %s: it has no %s: %s", pattern, pkg, unit, out)
	}
	return values, nil
}

// onePod builds a stage with an agent and one pod that has the role "bench". Sessions live as long as life says.
func onePod(ctx context.Context, cfg testbed.Config, life time.Duration) (_ *testbed.Bed, _ *nodebox.Pod, err error) {
	bed, err := testbed.New(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, bed.Close())
		}
	}()
	bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return life })
	pod, err := addBenchPod(bed)
	if err != nil {
		return nil, nil, err
	}
	if _, err := bed.StartAgent(ctx); err != nil {
		return nil, nil, err
	}
	return bed, pod, nil
}

// addBenchPod adds a pod that has the role "bench".
func addBenchPod(bed *testbed.Bed) (*nodebox.Pod, error) {
	role, err := bed.AddRole("bench", "bench", "bench")
	if err != nil {
		return nil, err
	}
	if err := bed.AddServiceAccount("bench", "bench", role); err != nil {
		return nil, err
	}
	return bed.AddPod("bench", "bench-0", "bench")
}

// answer is what the bare handler says: every byte of it but the date.
type answer struct {
	Header http.Header
	Body   []byte
}

// get fetches url from inside a pod.
func get(ctx context.Context, pod *nodebox.Pod, url string) (answer, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return pod.DialContext(ctx, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{}, fmt.Errorf("get %s: %w", url, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}, fmt.Errorf("get %s: %w", url, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, fmt.Errorf("get %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("get %s: %s: %s", url, response.Status, body)
	}
	response.Header.Del("Date")
	if response.Close { // what the client has taken out of the header
		response.Header.Set("Connection", "close")
	}
	return answer{response.Header, body}, nil
}
