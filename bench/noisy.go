package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	noisyRepeats = 9
	noisyRate    = 1000 // requests per second of the noisy pod
	quietRate    = 80   // of the other one
	quietFor     = 6 * time.Second
	// noisyAhead is how long the noise has been there when the quiet pod begins: longer than any burst that is let pass.
	noisyAhead = 2 * time.Second
)

// noisyNeighbour measures the 99th percentile of a pod's credential requests while another pod of the same node makes
// 1 000 a second, over that of the same requests without. The two take turns, and which one begins alternates. Nobody is
// stopped from asking: what the noisy pod is not served does not slow it down.
func noisyNeighbour(ctx context.Context, agent string) (_ []figure, err error) {
	bed, quiet, err := onePod(ctx, testbed.Config{Agent: agent, Under: onCPU(serverCPU)}, time.Hour)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	noisy, err := bed.AddPod("bench", "noisy-0", "bench")
	if err != nil {
		return nil, err
	}
	for _, pod := range []*nodebox.Pod{quiet, noisy} {
		if _, err := get(ctx, pod, "http://169.254.169.254"+credentials); err != nil {
			return nil, err
		}
	}
	own := stream{Address: "169.254.169.254:80", Path: credentials, PerSecond: quietRate, For: quietFor}
	noise := own
	noise.PerSecond, noise.For = noisyRate, time.Hour
	var ratios []float64
	for i := range noisyRepeats + 1 {
		var p99 [2]time.Duration // without noise, with it
		for turn := range 2 {
			which := (i + turn) % 2
			if p99[which], err = quietP99(ctx, own, quiet, noise, noisy, which == 1); err != nil {
				return nil, err
			}
		}
		if i > 0 { // the first one warms up
			ratios = append(ratios, float64(p99[1])/float64(p99[0]))
		}
	}
	return []figure{newFigure("noisy_neighbour_p99_ratio", "ratio", ratios)}, nil
}

// quietP99 returns the 99th percentile of what the quiet pod's requests take, all of which must be served.
func quietP99(
	ctx context.Context, own stream, quiet *nodebox.Pod, noise stream, noisy *nodebox.Pod, withNoise bool,
) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if withNoise {
		running, err := noise.start(ctx, noisy, io.Discard)
		if err != nil {
			return 0, err
		}
		defer func() {
			cancel()
			_ = running.Wait() // killed
		}()
		select {
		case <-time.After(noisyAhead):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	var out bytes.Buffer
	cmd, err := own.start(ctx, quiet, &out)
	if err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("requests of the quiet pod: %w", err)
	}
	var r streamResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return 0, fmt.Errorf("read result of the quiet pod: %w", err)
	}
	if r.Failed > 0 {
		return 0, fmt.Errorf("%d of the quiet pod's requests were not served", r.Failed)
	}
	return r.P99, nil
}

// streamArgument makes a process of this program a stream.
const streamArgument = "podrole-stream"

// stream is requests at a fixed rate, each on a connection of its own, whatever becomes of those before.
type stream struct {
	Address   string // of the server
	Path      string
	PerSecond int
	For       time.Duration
}

// streamResult is what became of a stream.
type streamResult struct {
	P99    time.Duration // of those served
	Failed int
}

// start plays s in a process of its own inside pod, on CPU loadCPU. Its result goes to out as JSON when it has ended.
func (s stream) start(ctx context.Context, pod *nodebox.Pod, out io.Writer) (*exec.Cmd, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write stream: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	args := append(onCPU(loadCPU), self, streamArgument, string(text))
	cmd := pod.Command(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start stream: %w", err)
	}
	return cmd, nil
}

// streamMain turns the process into a stream if stream.start made it.
func streamMain() {
	if len(os.Args) != 3 || os.Args[1] != streamArgument {
		return
	}
	if err := playStream(os.Args[2], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "stream:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func playStream(text string, w io.Writer) error {
	var s stream
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("read stream: %w", err)
	}
	request := []byte("GET " + s.Path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: stream\r\n\r\n")
	var (
		asking sync.WaitGroup
		mu     sync.Mutex // guards the following
		took   []time.Duration
		result streamResult
	)
	interval := time.Second / time.Duration(s.PerSecond)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for range int(s.For / interval) {
		<-ticker.C
		asking.Go(func() {
			began := time.Now()
			served := s.once(request)
			since := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if !served {
				result.Failed++
				return
			}
			took = append(took, since)
		})
	}
	asking.Wait()
	if len(took) > 0 {
		slices.Sort(took)
		result.P99 = took[len(took)*99/100]
	}
	return json.NewEncoder(w).Encode(result)
}

// once makes one request, reads the answer to its end, and reports whether it was served.
func (s stream) once(request []byte) bool {
	conn, err := net.DialTimeout("tcp", s.Address, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := conn.Write(request); err != nil {
		return false
	}
	answer, err := io.ReadAll(conn)
	return err == nil && bytes.HasPrefix(answer, []byte("HTTP/1.1 200 "))
}
