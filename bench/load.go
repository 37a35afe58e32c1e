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
)

// Arguments that make a process of this program the load or the server.
const (
	loadArgument   = "podrole-load"
	serverArgument = "podrole-bare-server"
)

// load is a number of requests, each on a connection of its own.
type load struct {
	Address  string // of the server
	Path     string
	Requests int
	Workers  int
	Body     int // length of the answer's body
}

// loadResult is what a load measured.
type loadResult struct {
	PerSecond float64
	P99       time.Duration
}

// run plays l in a process of its own inside pod, on CPU loadCPU.
func (l load) run(ctx context.Context, pod *nodebox.Pod) (loadResult, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return loadResult{}, fmt.Errorf("write load: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return loadResult{}, fmt.Errorf("find own binary: %w", err)
	}
	args := append(onCPU(loadCPU), self, loadArgument, string(text))
	var out, problems bytes.Buffer
	cmd := pod.Command(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return loadResult{}, fmt.Errorf("load %s: %w: %s", l.Address, err, &problems)
	}
	var r loadResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return loadResult{}, fmt.Errorf("read result of load: %w", err)
	}
	return r, nil
}

// CPUs of server and load, so that neither takes time from the other.
const (
	serverCPU = 0
	loadCPU   = 1
)

// onCPU is the command that keeps another to one CPU.
func onCPU(cpu int) []string { return []string{"taskset", "--cpu-list", fmt.Sprint(cpu)} }

// loadMain turns the process into a load if load.run made it.
func loadMain() {
	if len(os.Args) != 3 || os.Args[1] != loadArgument {
		return
	}
	if err := playLoad(os.Args[2], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func playLoad(text string, w io.Writer) error {
	var l load
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	request := []byte("GET " + l.Path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: load\r\n\r\n")
	each := l.Requests / l.Workers
	took := make([][]time.Duration, l.Workers)
	errs := make([]error, l.Workers)
	var working sync.WaitGroup
	began := time.Now()
	for i := range l.Workers {
		working.Go(func() {
			answer := make([]byte, 0, l.Body+1024)
			for range each {
				start := time.Now()
				var err error
				if answer, err = l.once(request, answer[:0]); err != nil {
					errs[i] = err
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	working.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	elapsed := time.Since(began)
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	return json.NewEncoder(w).Encode(loadResult{
		PerSecond: float64(len(all)) / elapsed.Seconds(),
		P99:       all[len(all)*99/100],
	})
}

// once makes one request and checks the answer. It returns the buffer for the next one.
func (l load) once(request, answer []byte) ([]byte, error) {
	conn, err := net.DialTimeout("tcp", l.Address, time.Second)
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	if _, err := conn.Write(request); err != nil {
		return answer, err
	}
	for {
		n, err := conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return answer, err
		}
		if len(answer) == cap(answer) {
			answer = slices.Grow(answer, 4096)
		}
	}
	_, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) || !found || len(body) != l.Body {
		return answer, fmt.Errorf("answer with %d bytes of body instead of %d: %.200q", len(body), l.Body, answer)
	}
	return answer, nil
}

// bareServer starts the server to compare with in the node's namespace: net/http, and a handler that writes the same
// answer and closes, as plain as can be. The address it listens on is returned.
func bareServer(ctx context.Context, node *nodebox.Namespace, host string, a answer) (address string, err error) {
	text, err := json.Marshal(a)
	if err != nil {
		return "", fmt.Errorf("write answer: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own binary: %w", err)
	}
	args := append(onCPU(serverCPU), self, serverArgument, host)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(text)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("read server's address: %w", err)
	}
	if err := node.Start(cmd); err != nil {
		return "", err
	}
	if _, err := fmt.Fscanln(out, &address); err != nil {
		return "", fmt.Errorf("read server's address: %w", errors.Join(err, cmd.Wait()))
	}
	go func() { _ = cmd.Wait() }() // killed with the context
	return address, nil
}
