package systems_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/testbed"
	"github.com/podrole/podrole/pkg/telemetry"
)

// TestEksctlServiceAccount: what eksctl create iamserviceaccount leaves behind is all that a pod needs where no webhook
// stands between. That is a role with the trust policy that IRSA documents; a Namespace without annotations, if there was
// none; and a ServiceAccount with one label and one annotation, which it adds to those of a ServiceAccount that was there
// (https://github.com/eksctl-io/eksctl, pkg/kubernetes/serviceaccount.go).
func TestEksctlServiceAccount(t *testing.T) {
	// CloudFormation names the role: after the stack, its resource, and a random end.
	const role = "eksctl-box-addon-iamserviceaccount-shop-cart-Role1-4Xw2LqN7cR9b"
	metadata := func(role string) (labels, annotations map[string]string) {
		return map[string]string{"app.kubernetes.io/managed-by": "eksctl"}, map[string]string{"eks.amazonaws.com/role-arn": role}
	}
	s := newStage(t)
	labels, annotations := metadata(s.addRole(t, role, "cart", awstest.Permit("s3:ListAllMyBuckets")))
	s.putAccount(t, "cart", labels, annotations)
	s.putAccount(t, "intruder", labels, annotations) // which the role does not trust
	s.putAccount(t, "default", nil, nil)
	// One of somebody's chart, before eksctl.
	s.putAccount(t, "mail", map[string]string{"app.kubernetes.io/managed-by": "Helm", "app": "mail"},
		map[string]string{"meta.helm.sh/release-name": "mail"})
	cart, err := s.cluster.AddPod(namespace, "cart-0", "cart")
	must(t, err)
	intruder, err := s.cluster.AddPod(namespace, "intruder-0", "intruder")
	must(t, err)
	neighbour, err := s.cluster.AddPod(namespace, "web-0", "default")
	must(t, err)
	mail, err := s.cluster.AddPod(namespace, "mail-0", "mail")
	must(t, err)
	s.start(t)

	want := sessionARN(testbed.Account, role, "cart")
	if got, err := s.whoami(t, cart, s.bed.STS()); err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	s.untroubled(t, cart)
	out, err := s.whoami(t, neighbour, s.bed.STS())
	refused(t, "another ServiceAccount of the Namespace", out, err, noCredentialsCLI)
	out, err = s.whoami(t, intruder, s.bed.STS())
	refused(t, "a ServiceAccount that the role does not trust", out, err, noCredentialsCLI)
	s.warning(t, intruder, telemetry.EventRefused)
	out, err = s.whoami(t, mail, s.bed.STS())
	refused(t, "a ServiceAccount before eksctl", out, err, noCredentialsCLI)

	_, annotations = metadata(s.addRole(t, "mail", "mail", ""))
	annotations["meta.helm.sh/release-name"] = "mail"
	s.putAccount(t, "mail", map[string]string{"app.kubernetes.io/managed-by": "eksctl", "app": "mail"}, annotations)
	eventually(t, "the role of a pod that ran before eksctl", func() error {
		got, err := s.whoami(t, mail, s.bed.STS())
		if err != nil || got != sessionARN(testbed.Account, "mail", "mail") {
			return errors.Join(fmt.Errorf("got %q", got), err)
		}
		return nil
	})
}
