package testbed

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// readyWithin bounds the start of an agent, its first sessions included.
const readyWithin = time.Minute

// Agent is an agent's process in the node's namespace.
type Agent struct {
	bed   *Bed
	cmd   *exec.Cmd
	ready chan struct{} // closed when the agent says that it is
	ended chan struct{} // closed when the process has ended and its log is read

	mu  sync.Mutex // guards the following
	log bytes.Buffer
	err error
}

// StartAgent starts an agent and returns when pods are led to it.
func (b *Bed) StartAgent(ctx context.Context, flags ...string) (*Agent, error) {
	a, err := b.launchAgent(flags...)
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(readyWithin)
	defer timeout.Stop()
	select {
	case <-a.ready:
		return a, nil
	case <-a.ended:
		return nil, fmt.Errorf("the agent ended before it was ready: %w\n%s", a.err, a.Log())
	case <-timeout.C:
		return nil, fmt.Errorf("the agent is not ready after %s:\n%s", readyWithin, errors.Join(a.Kill(), errors.New(a.Log())))
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), a.Kill())
	}
}

// launchAgent starts an agent and does not wait for it to be ready.
func (b *Bed) launchAgent(flags ...string) (*Agent, error) {
	args := append(slices.Clone(b.cfg.Under), b.cfg.Agent, "run")
	args = append(args,
		"--kube-objects="+b.Objects,
		"--node-name="+NodeName,
		"--cni-dir="+b.Box.CNIDir,
		"--sts-region="+Region,
		"--sts-endpoint="+b.STS())
	args = append(append(args, b.cfg.Flags...), flags...)
	cmd := exec.Command(args[0], args[1:]...)
	// The agent's credentials are the node's, from its metadata service: nothing of the caller's environment.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.Box.Dir}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("read the agent's log: %w", err)
	}
	a := &Agent{bed: b, cmd: cmd, ready: make(chan struct{}), ended: make(chan struct{})}
	if err := b.Box.Node.Start(cmd); err != nil {
		return nil, err
	}
	go a.follow(stderr)
	return a, nil
}

// follow reads the log to its end, which is the process's.
func (a *Agent) follow(stderr io.Reader) {
	defer close(a.ended)
	announced := false
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		a.mu.Lock()
		a.log.Write(lines.Bytes())
		a.log.WriteByte('\n')
		a.mu.Unlock()
		if w := a.bed.cfg.Log; w != nil {
			fmt.Fprintf(w, "%s\n", lines.Bytes())
		}
		if !announced && strings.Contains(lines.Text(), `"agent ready"`) {
			announced = true
			close(a.ready)
		}
	}
	err := a.cmd.Wait()
	a.mu.Lock()
	a.err = err
	a.mu.Unlock()
}

// Log returns what the agent has logged so far.
func (a *Agent) Log() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.String()
}

// Kill ends the agent with SIGKILL and returns when it is gone.
func (a *Agent) Kill() error { return a.end(syscall.SIGKILL) }

// Stop ends the agent with SIGTERM and returns when it is gone, with an error if it did not end well.
func (a *Agent) Stop() error {
	if err := a.end(syscall.SIGTERM); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return fmt.Errorf("the agent did not end well: %w\n%s", a.err, a.log.String())
	}
	return nil
}

func (a *Agent) end(signal syscall.Signal) error {
	if err := a.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal the agent: %w", err)
	}
	<-a.ended
	return nil
}

// Metrics returns what the agent shows to Prometheus.
func (a *Agent) Metrics(ctx context.Context) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return a.bed.Box.Node.DialContext(ctx, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9716/metrics", nil)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("read metrics: %w", err)
	}
	return string(text), nil
}

// RSS returns the resident memory of the agent's process, in bytes, as the kernel counts it (proc_pid_status(5)).
func (a *Agent) RSS() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of the agent: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kib int64
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				return 0, fmt.Errorf("read memory of the agent: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("read memory of the agent: the process is gone")
}
