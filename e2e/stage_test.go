// Package e2e_test plays whole pieces: the agent as it ships, a node in a box, AWS outside of it, and real clients in the pods.
package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/testbed"
)

func TestMain(m *testing.M) {
	poll.Main() // the pollers in the pods are this same program
	code := m.Run()
	if err := nodebox.RemoveBuilds(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// newBed builds a stage for one test.
func newBed(t *testing.T, cfg testbed.Config) *testbed.Bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	var err error
	if cfg.Agent, err = nodebox.BuildAgent(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	cfg.Log = t.Output()
	bed, err := testbed.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	return bed
}

// addPod adds a pod with a ServiceAccount of its own, and a role of the same name unless role is empty.
func addPod(t *testing.T, bed *testbed.Bed, account, role string) *nodebox.Pod {
	t.Helper()
	arn := ""
	if role != "" {
		var err error
		if arn, err = bed.AddRole(role, "shop", account); err != nil {
			t.Fatal(err)
		}
	}
	if err := bed.AddServiceAccount("shop", account, arn); err != nil {
		t.Fatal(err)
	}
	pod, err := bed.AddPod("shop", account+"-0", account)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func startAgent(t *testing.T, bed *testbed.Bed, flags ...string) *testbed.Agent {
	t.Helper()
	a, err := bed.StartAgent(t.Context(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The metadata service as pods call it.
const (
	metadataIPv4 = "http://169.254.169.254"
	metadataIPv6 = "http://[fd00:ec2::254]"
	credentials  = "/latest/meta-data/iam/security-credentials/"
	tokenPath    = "/latest/api/token"
	tokenHeader  = "X-Aws-Ec2-Metadata-Token"
	ttlHeader    = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// answer is what a request got. A request that was refused has an error.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %.100q", a.status, a.body)
}

// ask makes one request from inside a namespace, with a connection of its own and the patience of botocore.
func ask(ctx context.Context, from *nodebox.Namespace, method, url string, headers ...string) answer {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.DialContext}}
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if request.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			request.Host = headers[i+1]
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body), err}
}

// get is ask for a GET over IPv4.
func get(t *testing.T, pod *nodebox.Pod, path string, headers ...string) answer {
	t.Helper()
	return ask(t.Context(), pod.Namespace, http.MethodGet, metadataIPv4+path, headers...)
}

// program runs a client in a pod, without any AWS setting of the test's own environment.
func program(t *testing.T, bed *testbed.Bed, pod *nodebox.Pod, name string, args ...string) (string, error) {
	t.Helper()
	cmd := pod.Command(t.Context(), name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + bed.Box.Dir, "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(bytes.ReplaceAll(out, []byte("\n"), []byte(" ")))), err
}

// eventually waits until check is empty, and fails with what it last said after a while.
func eventually(t *testing.T, what string, check func() string) {
	t.Helper()
	const patience = 20 * time.Second
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		problem := check()
		if problem == "" {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("%s: not after %s: %s", what, patience, problem)
		}
	}
}

func noLeaks(t *testing.T, bed *testbed.Bed) {
	t.Helper()
	for _, l := range bed.Box.Leaks() {
		t.Errorf("leak: %v", l)
	}
	for _, l := range bed.Metadata.Leaks() {
		t.Errorf("the node's metadata service was reached: %v", l)
	}
}
