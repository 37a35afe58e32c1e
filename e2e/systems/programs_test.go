package systems_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
)

// program is what runs in a namespace of the box: with a home without settings, and no setting in its environment but env.
type program struct {
	in      *nodebox.Namespace
	command []string
	env     []string
	stdin   string
}

// run runs a program and returns what it wrote to standard output. An error says what it wrote to standard error.
func (s *stage) run(t *testing.T, p program) (string, error) {
	t.Helper()
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := p.in.Command(ctx, p.command[0], p.command[1:]...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.home, "LC_ALL=C.UTF-8"}, p.env...)
	cmd.Dir = s.home
	cmd.Stdin = strings.NewReader(p.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", filepath.Base(p.command[0]), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// refused fails unless a program ended with an error that says want.
func refused(t *testing.T, who, out string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %q, %v; want an error with %q", who, out, err, want)
	}
}

// How clients say that nobody has credentials for them.
const (
	noCredentialsCLI  = "Unable to locate credentials"
	noCredentialsGoV1 = "NoCredentialProviders"
	noCredentialsGoV2 = "no EC2 IMDS role found"
)

// awsCLI is the distribution's. Another one that comes first in PATH may be of a release that does not look for its region.
const awsCLI = "/usr/bin/aws"

// aws runs the AWS CLI in a pod. Region and credentials are the CLI's to find.
func (s *stage) aws(t *testing.T, pod *nodebox.Pod, args ...string) (string, error) {
	t.Helper()
	if _, err := os.Stat(awsCLI); err != nil {
		t.Fatalf("the AWS CLI is missing (%v): install it with ./tools/install awscli:%s", err, awsCLI)
	}
	out, err := s.run(t, program{in: pod.Namespace, command: append([]string{awsCLI}, args...)})
	return strings.TrimSpace(out), err
}

// whoami returns the ARN that the AWS CLI in a pod acts as.
func (s *stage) whoami(t *testing.T, pod *nodebox.Pod, endpoint string) (string, error) {
	t.Helper()
	return s.aws(t, pod, "sts", "get-caller-identity", "--query", "Arn", "--output", "text", "--endpoint-url", endpoint)
}

// client builds a program of module clients, which is apart for what its programs stand on, and returns its path.
func client(t *testing.T, name string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-o", binary, "./"+name)
	cmd.Dir = "clients"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	t.Logf("building %s (a minute or two the first time)", name)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return binary
}

// endpoints lead an SDK of today to AWS outside of the node.
func (s *stage) endpoints() []string {
	return []string{"AWS_ENDPOINT_URL_STS=" + s.bed.STS(), "AWS_ENDPOINT_URL_SECRETS_MANAGER=" + s.bed.STS()}
}

// callsOf counts the calls of an action that came from the pod itself and succeeded.
func (s *stage) callsOf(pod *nodebox.Pod, action string) int {
	n := 0
	for _, c := range s.bed.AWS.Calls(awstest.Filter{Action: action, Code: awstest.CodeOK}) {
		if c.Source.Addr() == pod.IP {
			n++
		}
	}
	return n
}
