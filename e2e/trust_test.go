package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/testbed"
)

// kube2iamTrust is a role's trust policy as a cluster that ran kube2iam has it: EC2, for instances that use the role
// themselves, and the nodes' role. Nothing else.
func kube2iamTrust(actions string) string {
	return fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [
		{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
		{"Effect": "Allow", "Principal": {"AWS": %q}, "Action": %s}
	]}`, testbed.NodeRole, actions)
}

// TestKube2iamsTrustPolicy: roles that worked with kube2iam work as they are. Session tags ask for more than their
// trust policies allow, and an operator who switches them on is told what is missing.
func TestKube2iamsTrustPolicy(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	role := awstest.Role{
		ARN:   "arn:aws:iam::" + testbed.Account + ":role/orders",
		Trust: kube2iamTrust(`"sts:AssumeRole"`),
	}
	put := func() {
		t.Helper()
		if err := bed.AWS.PutRole(role); err != nil {
			t.Fatal(err)
		}
	}
	put()
	agent := startAgent(t, bed)
	if got := get(t, pod, credentials+"orders"); got.status != http.StatusOK {
		t.Errorf("with the trust policy as it is: got %s", got)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}

	tags := []string{"--session-tags", "--cluster-name=box"}
	agent = startAgent(t, bed, tags...)
	if got := get(t, pod, credentials+"orders"); got.status != http.StatusNotFound {
		t.Errorf("with session tags that the trust policy does not allow: got %s, want 404", got)
	}
	const want = "the role's trust policy lacks sts:TagSession: add it beside sts:AssumeRole, or switch session tags off"
	if !strings.Contains(agent.Log(), want) {
		t.Errorf("the log does not say %q", want)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}

	role.Trust = kube2iamTrust(`["sts:AssumeRole", "sts:TagSession"]`)
	put()
	startAgent(t, bed, tags...)
	if got := get(t, pod, credentials+"orders"); got.status != http.StatusOK {
		t.Errorf("with session tags that the trust policy allows: got %s", got)
	}
	noLeaks(t, bed)
}
