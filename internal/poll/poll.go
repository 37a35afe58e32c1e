// Package poll is the client whose waiting is measured: a process inside a pod that needs credentials again and again
// and writes down how long it had to wait for them each time. It is a process of its own, so that nothing but the
// network stands between it and what it measures.
package poll

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
)

// argument is the first one of a process that is to be a poller.
const argument = "podrole-poll"

// Method is where a poller gets its credentials.
type Method string

const (
	// IMDS asks the metadata service for credentials each time, as an SDK does whose own are about to expire, with a
	// connection of its own.
	IMDS Method = "imds"
	// Inline keeps credentials until they expire, then calls STS while the request waits, as the AWS SDK for Go does
	// with IRSA's web identity token.
	Inline Method = "inline"
)

// Config says what a poller does.
type Config struct {
	Method   Method
	Role     string        // IMDS: the role's name; Inline: its ARN
	Interval time.Duration // between the beginnings of two requests
	STS      string        // Inline: URL of STS
	Region   string        // Inline
	Token    string        // Inline: file with the web identity token
}

// Sample is one request.
type Sample struct {
	At    time.Time
	Took  time.Duration
	Key   string // access key ID that it got
	Error string // empty if it got one
}

// Poller is a running poller.
type Poller struct {
	samples chan Sample
	err     error // set before samples is closed
}

// Start runs a poller in pod until ctx ends. The program that calls it must call [Main] first thing in its own main, for
// the poller is another process of the same binary.
func Start(ctx context.Context, pod *nodebox.Pod, cfg Config) (*Poller, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("write poller's configuration: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, argument, string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("read poller's samples: %w", err)
	}
	if err := pod.Start(cmd); err != nil {
		return nil, err
	}
	p := &Poller{samples: make(chan Sample, 1024)}
	go p.read(ctx, cmd, out)
	return p, nil
}

// read passes on samples until the process ends.
func (p *Poller) read(ctx context.Context, cmd *exec.Cmd, out io.Reader) {
	defer close(p.samples)
	decoder := json.NewDecoder(bufio.NewReader(out))
	for {
		var s Sample
		if err := decoder.Decode(&s); err != nil {
			break // the end, in whatever way: Wait says which
		}
		p.samples <- s
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		p.err = fmt.Errorf("poller ended: %w", err)
	}
}

// Samples yields the samples as they come. It is closed when the poller has ended, and must be read to its end.
func (p *Poller) Samples() <-chan Sample { return p.samples }

// Err returns why the poller ended by itself, once Samples is closed.
func (p *Poller) Err() error { return p.err }

// Main turns the process into a poller if Start made it, and returns only if not.
func Main() {
	if len(os.Args) != 3 || os.Args[1] != argument {
		return
	}
	if err := run(os.Args[2], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "poll:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(text string, out io.Writer) error {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	client, err := newClient(cfg)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	ticker := time.NewTicker(cfg.Interval)
	defer ticker.Stop()
	for {
		began := time.Now()
		key, err := client(context.Background())
		s := Sample{At: began, Took: time.Since(began), Key: key}
		if err != nil {
			s.Error = err.Error()
		}
		if err := encoder.Encode(s); err != nil {
			return fmt.Errorf("write sample: %w", err) // nobody reads any more
		}
		<-ticker.C
	}
}

// newClient returns what gets credentials once, and the access key ID of what it got.
func newClient(cfg Config) (func(context.Context) (string, error), error) {
	switch cfg.Method {
	case IMDS:
		return imdsClient(cfg), nil
	case Inline:
		return inlineClient(cfg), nil
	default:
		return nil, fmt.Errorf("method %q is not known", cfg.Method)
	}
}
