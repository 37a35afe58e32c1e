package systems_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
	"github.com/podrole/podrole/pkg/telemetry"
)

// What LocalStack is out of the box: one port for all services and regions, and one account
// (https://docs.localstack.cloud/aws/capabilities/config/credentials).
const (
	localPort    = 4566
	localAccount = "000000000000"
	localRegion  = "us-east-1"
)

// TestLocalStack: a cluster that is nowhere near EC2 and has an AWS of its own. The agent's credentials are an access key,
// which it finds as any SDK does.
func TestLocalStack(t *testing.T) {
	s := newStageOf(t, testbed.NoTokens("../../manifests"))
	endpoint := "http://" + s.serveOutside(t, localPort, &http.Server{Handler: s.bed.AWS.Endpoint("")}).String()
	user := s.giveAccessKey(t)
	must(t, s.bed.AWS.PutBucket(localAccount, "local-bucket"))
	must(t, s.bed.AWS.PutBucket(testbed.Account, "remote-bucket"))
	for role, trusted := range map[string]string{"orders": user, "vain": user + "-two"} {
		must(t, s.bed.AWS.PutRole(awstest.Role{
			ARN: roleARN(localAccount, role), Trust: awstest.TrustPrincipals(trusted),
			Permissions: awstest.Permit("s3:ListAllMyBuckets"),
		}))
	}
	permitted := map[string]string{"iam.amazonaws.com/allowed-roles": `["` + roleARN(localAccount, "*") + `"]`}
	must(t, s.cluster.API.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Annotations: permitted}}))
	must(t, s.cluster.AddNamespace("closed"))
	byARN := s.addPodOf(t, namespace, "orders", roleARN(localAccount, "orders"))
	byName := s.addPodOf(t, namespace, "reports", "orders")
	untrusted := s.addPodOf(t, namespace, "vain", "vain")
	remote := s.addPodOf(t, namespace, "remote", roleARN(testbed.Account, "orders"))
	unpermitted := s.addPodOf(t, "closed", "orders", roleARN(localAccount, "orders"))
	s.start(t, "--credential-source=assume-role", "--base-role-arn="+roleARN(localAccount, ""),
		"--sts-endpoint="+endpoint, "--sts-region="+localRegion,
		"--metadata-upstream=false", "--availability-zone="+localRegion+"a")

	for account, pod := range map[string]*nodebox.Pod{"orders": byARN, "reports": byName} {
		if got, err := s.whoami(t, pod, endpoint); err != nil || got != sessionARN(localAccount, "orders", account) {
			t.Errorf("%s: got %q, %v", account, got, err)
		}
		s.untroubled(t, pod)
	}
	out, err := s.aws(t, byName, "s3", "ls", "--endpoint-url", endpoint)
	if err != nil || !strings.HasSuffix(out, " local-bucket") || strings.Contains(out, "remote-bucket") {
		t.Errorf("aws s3 ls: got %q, %v", out, err)
	}
	if n := s.bed.AWS.Count(awstest.Filter{Service: "s3", Region: localRegion, Code: awstest.CodeOK}); n != 1 {
		t.Errorf("%d calls to S3 in %s, want 1: pods are told the region", n, localRegion)
	}
	for _, bad := range []struct {
		who    string
		pod    *nodebox.Pod
		reason string
	}{
		{"a role that does not trust the agent", untrusted, telemetry.EventRefused},
		{"a role of another account", remote, telemetry.EventDenied},
		{"a Namespace that permits no role", unpermitted, telemetry.EventDenied},
	} {
		out, err := s.whoami(t, bad.pod, endpoint)
		refused(t, bad.who, out, err, noCredentialsCLI)
		s.warning(t, bad.pod, bad.reason)
	}
	if n := s.bed.Metadata.RequestCount(); n != 0 {
		t.Errorf("%d requests to the metadata service of a node that would have none", n)
	}
}

// giveAccessKey makes an IAM user that may assume roles, writes its access key where the agent's SDK looks, and returns
// the user's ARN.
func (s *stage) giveAccessKey(t *testing.T) string {
	t.Helper()
	user := "arn:aws:iam::" + localAccount + ":user/podrole"
	key, err := s.bed.AWS.AddUser(awstest.User{ARN: user, Permissions: awstest.Permit("sts:AssumeRole")})
	must(t, err)
	folder := filepath.Join(s.bed.Box.Dir, ".aws") // the agent's home is the box's folder
	must(t, os.Mkdir(folder, 0o700))
	must(t, os.WriteFile(filepath.Join(folder, "credentials"), fmt.Appendf(nil,
		"[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", key.AccessKeyID, key.SecretAccessKey), 0o600))
	return user
}
