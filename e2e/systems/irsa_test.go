package systems_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
	"github.com/podrole/podrole/pkg/telemetry"
)

// TestIRSAWebhook: the SDK of a pod into which the IRSA webhook injected its variables goes to STS itself and never asks
// podrole. podrole says so, once, and what to do; and that helps.
func TestIRSAWebhook(t *testing.T) {
	s := newStage(t)
	binary := client(t, "secret-exec")
	arn, err := s.bed.AWS.PutSecret("aws", testbed.Region, testbed.Account, "shop/db-password", "correct horse")
	must(t, err)
	role := s.addRole(t, "orders", "orders", permitOn(arn, "secretsmanager:GetSecretValue"))
	s.putAccount(t, "orders", nil, map[string]string{"eks.amazonaws.com/role-arn": role})
	injected, err := s.bed.Box.AddPod(nodebox.PodConfig{Namespace: namespace, Name: "orders-0"})
	must(t, err)
	must(t, s.cluster.API.Put(mutatedPod(injected, "orders", role)))
	token, err := s.bed.WebIdentityToken(injected, "orders")
	must(t, err)
	plain := s.addPod(t, "reports", permitOn(arn, "secretsmanager:GetSecretValue"))
	agent := s.start(t)

	start := func(pod *nodebox.Pod, env ...string) {
		t.Helper()
		out, err := s.run(t, program{
			in: pod.Namespace, env: append(s.endpoints(), env...),
			command: []string{binary, "DB_PASSWORD=shop/db-password", "sh", "-c", `echo "$DB_PASSWORD"`},
		})
		if err != nil || out != "correct horse\n" {
			t.Errorf("%s: got %q, %v", pod.Config.Name, out, err)
		}
	}
	start(injected, "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+token, "AWS_REGION="+testbed.Region,
		"AWS_DEFAULT_REGION="+testbed.Region, "AWS_STS_REGIONAL_ENDPOINTS=regional")
	asked, own := metric(t, agent, requestsMetric), s.callsOf(injected, "AssumeRoleWithWebIdentity")
	if asked != 0 || own != 1 {
		t.Errorf("injected: %v requests to podrole and %d calls to STS of its own, want 0 and 1", asked, own)
	}
	start(plain)
	asked, own = metric(t, agent, requestsMetric), s.callsOf(plain, "AssumeRoleWithWebIdentity")
	if asked == 0 || own != 0 {
		t.Errorf("not injected: %v requests to podrole and %d calls to STS of its own, want some and 0", asked, own)
	}

	message := s.warning(t, injected, telemetry.EventBypassed)
	if !strings.Contains(message, "AWS_WEB_IDENTITY_TOKEN_FILE") || !strings.Contains(message, "podrole.io/role-arn") {
		t.Errorf("the Event says %q, want the variable and the way out", message)
	}
	s.untroubled(t, plain)
	if n := metric(t, agent, bypassingMetric); n != 1 {
		t.Errorf("%s is %v, want 1", bypassingMetric, n)
	}
	if n := strings.Count(agent.Log(), `"variable":"AWS_WEB_IDENTITY_TOKEN_FILE"`); n != 1 {
		t.Errorf("the log says it %d times, want once", n)
	}

	// What the Event says: rename the annotation, which the webhook goes by, and restart the pod.
	s.putAccount(t, "orders", nil, map[string]string{"podrole.io/role-arn": role})
	must(t, s.cluster.API.Delete("pods", namespace, "orders-0"))
	must(t, injected.Remove())
	restarted, err := s.cluster.AddPod(namespace, "orders-0", "orders")
	must(t, err)
	eventually(t, "nobody bypasses", func() error {
		if n := metric(t, agent, bypassingMetric); n != 0 {
			return fmt.Errorf("%s is %v", bypassingMetric, n)
		}
		return nil
	})
	start(restarted)
	if own := s.callsOf(restarted, "AssumeRoleWithWebIdentity"); own != 0 {
		t.Errorf("after the restart: %d calls to STS of its own", own)
	}
	s.untroubled(t, restarted)
}

// mutatedPod is a pod as the webhook leaves it (https://github.com/aws/amazon-eks-pod-identity-webhook, EKS Walkthrough).
func mutatedPod(pod *nodebox.Pod, account, role string) *corev1.Pod {
	const mount = "/var/run/secrets/eks.amazonaws.com/serviceaccount"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Config.Namespace, Name: pod.Config.Name, UID: types.UID(pod.Config.UID)},
		Spec: corev1.PodSpec{
			NodeName: testbed.NodeName, ServiceAccountName: account,
			Containers: []corev1.Container{{
				Name: "main", Image: "none",
				Env: []corev1.EnvVar{
					{Name: "AWS_STS_REGIONAL_ENDPOINTS", Value: "regional"},
					{Name: "AWS_DEFAULT_REGION", Value: testbed.Region},
					{Name: "AWS_REGION", Value: testbed.Region},
					{Name: "AWS_ROLE_ARN", Value: role},
					{Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: mount + "/token"},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "aws-iam-token", ReadOnly: true, MountPath: mount}},
			}},
			Volumes: []corev1.Volume{{Name: "aws-iam-token", VolumeSource: corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
						Audience: "sts.amazonaws.com", ExpirationSeconds: new(int64(86400)), Path: "token",
					},
				}}},
			}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: pod.IP.String(), PodIPs: []corev1.PodIP{{IP: pod.IP.String()}},
		},
	}
}

// Metrics of the agent.
const (
	requestsMetric  = "podrole_imds_request_duration_seconds_count"
	bypassingMetric = "podrole_pods_bypassing"
)

// metric returns the sum of a metric's series.
func metric(t *testing.T, agent *testbed.Agent, name string) (sum float64) {
	t.Helper()
	text, err := agent.Metrics(t.Context())
	must(t, err)
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if family, _, _ := strings.Cut(series, "{"); !ok || family != name {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		must(t, err)
		sum += n
	}
	return sum
}
