// Package systems_test plays podrole with the systems that stand on it: command-line tools, libraries of other projects,
// and objects as other tools write them. The agent is the one that ships, the node a box, AWS a stand-in that verifies.
package systems_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := nodebox.RemoveBuilds(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// namespace is where the pods are.
const namespace = "shop"

// stage is a node in a box with an API server and AWS outside. Pods get sessions by web identity, with the rights that
// the manifests give the agent.
type stage struct {
	bed     *testbed.Bed
	cluster *testbed.Cluster
	home    string // of all programs in pods: empty
}

// newStage builds a stage for one test, with nothing in it but the Namespace. Its agent may request tokens.
func newStage(t *testing.T) *stage {
	t.Helper()
	return newStageOf(t, testbed.DirectTokens("../../manifests"))
}

// newStageOf is newStage with another authority of the agent.
func newStageOf(t *testing.T, authority testbed.Authority) *stage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	agent, err := nodebox.BuildAgent(t.Context(), true)
	must(t, err)
	s := &stage{}
	s.bed, err = testbed.New(t.Context(), testbed.Config{Agent: agent, Log: t.Output()})
	must(t, err)
	t.Cleanup(func() {
		if err := s.bed.Close(); err != nil {
			t.Error(err)
		}
	})
	s.home = filepath.Join(s.bed.Box.Dir, "home")
	must(t, os.Mkdir(s.home, 0o700))
	s.cluster, err = s.bed.NewCluster(t.Context(), testbed.ClusterConfig{Authority: authority})
	must(t, err)
	must(t, s.cluster.AddNamespace(namespace))
	return s
}

// start starts an agent, and holds it at the end to what is true of every run.
func (s *stage) start(t *testing.T, flags ...string) *testbed.Agent {
	t.Helper()
	agent, err := s.bed.StartAgent(t.Context(), flags...)
	must(t, err)
	t.Cleanup(func() {
		if err := agent.Stop(); err != nil {
			t.Error(err)
		}
		if n := s.bed.NodeRoleLeaks(); n != 0 {
			t.Errorf("%d leaks of the node's role: %v %v", n, s.bed.Box.Leaks(), s.bed.Metadata.Leaks())
		}
		for _, token := range append(s.cluster.API.Tokens(), s.cluster.BearerToken) {
			if strings.Contains(agent.Log(), token) {
				t.Error("a token is in the log")
			}
		}
	})
	return agent
}

// addRole makes a role that trusts the ServiceAccount by its token, and returns its ARN.
func (s *stage) addRole(t *testing.T, name, account, permissions string) string {
	t.Helper()
	arn := roleARN(testbed.Account, name)
	must(t, s.bed.AWS.PutRole(awstest.Role{
		ARN: arn, Trust: awstest.TrustServiceAccount(s.bed.ProviderARN(), namespace, account), Permissions: permissions,
	}))
	return arn
}

// addPod makes a ServiceAccount, a role of the same name with these permissions, and a pod of theirs.
func (s *stage) addPod(t *testing.T, account, permissions string) *nodebox.Pod {
	t.Helper()
	return s.addPodOf(t, namespace, account, s.addRole(t, account, account, permissions))
}

// addPodWithoutRole makes a ServiceAccount and a pod of it.
func (s *stage) addPodWithoutRole(t *testing.T, account string) *nodebox.Pod {
	t.Helper()
	return s.addPodOf(t, namespace, account, "")
}

// addPodOf makes a ServiceAccount that names a role, or none if role is empty, and a pod of it.
func (s *stage) addPodOf(t *testing.T, namespace, account, role string) *nodebox.Pod {
	t.Helper()
	must(t, s.cluster.AddServiceAccount(namespace, account, role))
	pod, err := s.cluster.AddPod(namespace, account+"-0", account)
	must(t, err)
	return pod
}

// putAccount creates or changes a ServiceAccount.
func (s *stage) putAccount(t *testing.T, name string, labels, annotations map[string]string) {
	t.Helper()
	must(t, s.cluster.API.Put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, Labels: labels, Annotations: annotations,
	}}))
}

// serveOutside has a server answer on a port outside of the node until the test ends, over TLS if the server has a
// certificate, and returns the address.
func (s *stage) serveOutside(t *testing.T, port uint16, server *http.Server) netip.AddrPort {
	t.Helper()
	address := netip.AddrPortFrom(s.bed.Box.OutsideIP, port)
	l, err := s.bed.Box.Outside.Listen(t.Context(), "tcp", address.String())
	must(t, err)
	server.ReadHeaderTimeout = time.Minute
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if server.TLSConfig == nil {
			_ = server.Serve(l) // ends with Close
		} else {
			_ = server.ServeTLS(l, "", "")
		}
	}()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	return address
}

// permitOn returns an identity policy that allows the actions on one resource.
func permitOn(resource string, actions ...string) string {
	return strings.Replace(awstest.Permit(actions...), `"Resource":"*"`, `"Resource":"`+resource+`"`, 1)
}

func roleARN(account, name string) string { return "arn:aws:iam::" + account + ":role/" + name }

// sessionARN is whom a pod of the ServiceAccount acts as.
func sessionARN(account, role, serviceAccount string) string {
	return fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s.%s@%s", account, role, namespace, serviceAccount, testbed.NodeName)
}

// eventually waits until check has nothing to object to.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	const patience = 20 * time.Second
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("%s: not after %s: %v", what, patience, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
