package systems_test

import (
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestSecretInEnvironment: a command starts with a secret in its environment that its pod's role may read; where the role
// may not, it does not start.
func TestSecretInEnvironment(t *testing.T) {
	s := newStage(t)
	binary := client(t, "secret-exec")
	arn, err := s.bed.AWS.PutSecret("aws", testbed.Region, testbed.Account, "shop/db-password", "correct horse")
	must(t, err)
	_, err = s.bed.AWS.PutSecret("aws", testbed.Region, testbed.Account, "bank/db-password", "battery staple")
	must(t, err)
	orders := s.addPod(t, "orders", permitOn(arn, "secretsmanager:GetSecretValue"))
	reports := s.addPod(t, "reports", awstest.Permit("s3:ListAllMyBuckets"))
	nobody := s.addPodWithoutRole(t, "web")
	s.start(t)

	start := func(pod *nodebox.Pod, secret string) (string, error) {
		t.Helper()
		return s.run(t, program{
			in: pod.Namespace, env: s.endpoints(),
			command: []string{binary, "DB_PASSWORD=" + secret, "sh", "-c", `echo "started with $DB_PASSWORD"`},
		})
	}
	for _, secret := range []string{"shop/db-password", arn} {
		if out, err := start(orders, secret); err != nil || out != "started with correct horse\n" {
			t.Errorf("%s: got %q, %v", secret, out, err)
		}
	}
	for _, bad := range []struct {
		who    string
		pod    *nodebox.Pod
		secret string
		want   string
	}{
		{"somebody else's secret", orders, "bank/db-password", "AccessDeniedException"},
		{"a role that may not read secrets", reports, "shop/db-password", "AccessDeniedException"},
		{"a pod without a role", nobody, "shop/db-password", noCredentialsGoV2},
	} {
		out, err := start(bad.pod, bad.secret)
		refused(t, bad.who, out, err, bad.want)
		if out != "" {
			t.Errorf("%s: the command was started: %q", bad.who, out)
		}
	}
}
