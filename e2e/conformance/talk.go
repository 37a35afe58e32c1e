package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
)

const (
	// answerWithin bounds one answer of a client, the slowest of which retries for several seconds.
	answerWithin = 30 * time.Second
	// goneWithin is how long a client may take to leave when it has been told all.
	goneWithin = 5 * time.Second
	// longestLine bounds an answer's length.
	longestLine = 1 << 20
)

// answer is what a client says; go/talk says what the fields are.
type answer struct {
	Version string `json:"version,omitempty"`
	Key     string `json:"key,omitempty"`
	ARN     string `json:"arn,omitempty"`
	Region  string `json:"region,omitempty"`
	Body    string `json:"body,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (a answer) String() string {
	text, err := json.Marshal(a)
	if err != nil {
		return err.Error()
	}
	return tail(string(text))
}

// conversation is a running client.
type conversation struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string   // closed when the client says no more
	ended  chan struct{} // closed when the process is gone
	stderr limited
}

// converse starts a client in a pod, with variables of its own in its environment, and returns when it has introduced
// itself.
func converse(
	ctx context.Context, pod *nodebox.Pod, home string, variables []string, command ...string,
) (*conversation, answer, error) {
	c := &conversation{lines: make(chan string), ended: make(chan struct{})}
	c.cmd = exec.Command(command[0], command[1:]...)
	c.cmd.Env = append(environment(home), variables...)
	c.cmd.Dir = home
	c.cmd.Stderr = &c.stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, answer{}, fmt.Errorf("start client: %w", err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, answer{}, fmt.Errorf("start client: %w", err)
	}
	if err := pod.Start(c.cmd); err != nil {
		return nil, answer{}, err
	}
	go c.follow(out)
	hello, err := c.hear(ctx)
	if err != nil {
		c.kill()
		return nil, answer{}, fmt.Errorf("start client: %w", err)
	}
	return c, hello, nil
}

// follow reads what the client says until it ends.
func (c *conversation) follow(out io.Reader) {
	defer close(c.ended)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		c.lines <- lines.Text()
	}
	close(c.lines)
	_ = c.cmd.Wait() // how it ended matters only to who waits for an answer, and they are told that it has
}

// ask gives a command and returns the answer.
func (c *conversation) ask(ctx context.Context, command string) (answer, error) {
	if _, err := io.WriteString(c.in, command+"\n"); err != nil {
		return answer{}, fmt.Errorf("ask %q: %w: %s", command, err, tail(c.stderr.String()))
	}
	a, err := c.hear(ctx)
	if err != nil {
		return answer{}, fmt.Errorf("ask %q: %w", command, err)
	}
	return a, nil
}

// hear returns the next line.
func (c *conversation) hear(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	select {
	case line, ok := <-c.lines:
		if !ok {
			<-c.ended
			return answer{}, fmt.Errorf("the client is gone, %s: %s", c.cmd.ProcessState, tail(c.stderr.String()))
		}
		var a answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return answer{}, fmt.Errorf("the client says %q: %w", tail(line), err)
		}
		return a, nil
	case <-ctx.Done():
		return answer{}, fmt.Errorf("no answer: %w: %s", ctx.Err(), tail(c.stderr.String()))
	}
}

// close ends the conversation, and the client if it does not leave by itself.
func (c *conversation) close() error {
	_ = c.in.Close() // it may have left
	patience := time.NewTimer(goneWithin)
	defer patience.Stop()
	for lines := c.lines; ; {
		select {
		case line, ok := <-lines:
			if ok {
				c.kill()
				return fmt.Errorf("the client says more than it was asked: %q", tail(line))
			}
			lines = nil
		case <-c.ended:
			return nil
		case <-patience.C:
			c.kill()
			return errors.New("the client does not leave at the end of its input")
		}
	}
}

// kill ends the client and returns when it is gone.
func (c *conversation) kill() {
	_ = c.cmd.Process.Kill() // it may be gone
	for range c.lines {      // whatever it still says
	}
	<-c.ended
}

// limited keeps the beginning of what is written to it.
type limited struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *limited) Write(p []byte) (int, error) {
	const most = 64 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p[:min(len(p), most-min(most, l.text.Len()))])
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
