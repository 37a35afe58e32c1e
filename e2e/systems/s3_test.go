package systems_test

import (
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/testbed"
)

// TestS3List: aws s3 ls in a pod lists what the pod's role may list, in the region that the pod is told.
func TestS3List(t *testing.T) {
	s := newStage(t)
	for _, bucket := range []string{"orders-archive", "orders-inbox"} {
		must(t, s.bed.AWS.PutBucket(testbed.Account, bucket))
	}
	must(t, s.bed.AWS.PutBucket("444455556666", "somebody-elses"))
	may := s.addPod(t, "orders", awstest.Permit("s3:ListAllMyBuckets"))
	mayNot := s.addPod(t, "reports", awstest.Permit("s3:GetObject"))
	nobody := s.addPodWithoutRole(t, "web")
	s.start(t)

	out, err := s.aws(t, may, "s3", "ls", "--endpoint-url", s.bed.STS())
	if err != nil || !strings.Contains(out, " orders-archive\n") || !strings.HasSuffix(out, " orders-inbox") ||
		strings.Contains(out, "somebody-elses") {
		t.Errorf("a role that may list buckets: got %q, %v", out, err)
	}
	out, err = s.aws(t, mayNot, "s3", "ls", "--endpoint-url", s.bed.STS())
	refused(t, "a role that may not", out, err, "(AccessDenied)")
	out, err = s.aws(t, nobody, "s3", "ls", "--endpoint-url", s.bed.STS())
	refused(t, "a pod without a role", out, err, noCredentialsCLI)

	var callers []string
	for _, c := range s.bed.AWS.Calls(awstest.Filter{Service: "s3"}) {
		callers = append(callers, c.CallerARN)
		if c.Region != testbed.Region {
			t.Errorf("a call to S3 in %s, want the region that pods are told", c.Region)
		}
	}
	want := sessionARN(testbed.Account, "orders", "orders") + " " + sessionARN(testbed.Account, "reports", "reports")
	if got := strings.Join(callers, " "); got != want {
		t.Errorf("S3 was called by %s, want %s", got, want)
	}
}
