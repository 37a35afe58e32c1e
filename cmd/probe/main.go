// Podrole-probe asks an agent how it is, for the kubelet's probes: a program of its own, since probes run every few seconds
// and the agent's binary takes many times longer to start.
//
//	podrole-probe SOCKET readyz    exits with 0 when pods are led to an agent and the redirect is whole
//	podrole-probe SOCKET healthz   exits with 0 when the agent answers at all
//
// SOCKET is the agent's --probe-socket. Otherwise it exits with 1 and says why.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// timeout is longer than the kubelet waits.
const timeout = 5 * time.Second

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: podrole-probe SOCKET readyz|healthz")
		os.Exit(2)
	}
	if err := probe(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "podrole-probe: %v\n", err)
		os.Exit(1)
	}
}

// probe asks for a path. It speaks HTTP/1.0 itself: net/http would be most of this program.
func probe(socket, path string) error {
	c, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if _, err := fmt.Fprintf(c, "GET /%s HTTP/1.0\r\n\r\n", path); err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	answer := bufio.NewReader(io.LimitReader(c, 64<<10))
	status, err := answer.ReadString('\n')
	if err != nil {
		return fmt.Errorf("hear the agent: %w", err)
	}
	if fields := strings.Fields(status); len(fields) > 1 && fields[1] == "200" {
		return nil
	}
	text, err := io.ReadAll(answer)
	if err != nil {
		return fmt.Errorf("hear the agent: %w", err)
	}
	if _, body, found := strings.Cut(string(text), "\r\n\r\n"); found && body != "" {
		return errors.New(strings.TrimSpace(body))
	}
	return fmt.Errorf("the agent answers %q", strings.TrimSpace(status))
}
