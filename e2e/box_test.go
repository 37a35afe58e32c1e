package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestAWSCLIFindsItsPodsRole: the main job, on both kinds of pod network.
func TestAWSCLIFindsItsPodsRole(t *testing.T) {
	for name, network := range map[string]nodebox.PodNetwork{"routed": nodebox.Routed, "bridge": nodebox.Bridge} {
		t.Run(name, func(t *testing.T) {
			bed := newBed(t, testbed.Config{Pods: network})
			orders, reports, web := addPod(t, bed, "orders", "orders"), addPod(t, bed, "reports", "reports"), addPod(t, bed, "web", "")
			startAgent(t, bed)

			whoami := []string{"sts", "get-caller-identity", "--query", "Arn", "--output", "text",
				"--region", testbed.Region, "--endpoint-url", bed.STS()}
			for role, pod := range map[string]*nodebox.Pod{"orders": orders, "reports": reports} {
				want := fmt.Sprintf("arn:aws:sts::%s:assumed-role/%[2]s/shop.%[2]s@%s", testbed.Account, role, testbed.NodeName)
				if got, err := program(t, bed, pod, "aws", whoami...); err != nil || got != want {
					t.Errorf("%s: got %q, %v; want %q", pod.Config.Name, got, err, want)
				}
			}
			if got, err := program(t, bed, web, "aws", whoami...); err == nil || !strings.Contains(got, "Unable to locate credentials") {
				t.Errorf("the pod without a role: got %q, %v", got, err)
			}
			if got := get(t, web, credentials); got.status != http.StatusNotFound {
				t.Errorf("the pod without a role: got %s, want 404", got)
			}
			noLeaks(t, bed)
		})
	}
}

// probe asks for credentials in every way there is, from pod, and returns the answers that are not refusals.
func probe(t *testing.T, bed *testbed.Bed, pod *nodebox.Pod) (answered []string) {
	t.Helper()
	hosts := []string{metadataIPv4}
	if bed.Box.HasIPv6() {
		hosts = append(hosts, metadataIPv6)
	}
	for _, host := range hosts {
		for _, a := range []answer{
			ask(t.Context(), pod.Namespace, http.MethodGet, host+credentials),
			ask(t.Context(), pod.Namespace, http.MethodPut, host+tokenPath, ttlHeader, "60"),
		} {
			if a.err == nil {
				answered = append(answered, host+": "+a.String())
			}
		}
	}
	return answered
}

// TestClosedByDefault: from the moment the first agent has guarded the node, nothing a pod sends reaches the node's own
// metadata service, whatever becomes of agent and rules; and the node itself always does.
func TestClosedByDefault(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	agent := startAgent(t, bed)
	if got := get(t, pod, credentials); got.body != "orders" {
		t.Fatalf("got %s", got)
	}
	nodeStillReaches := func() {
		t.Helper()
		if got := ask(t.Context(), bed.Box.Node, http.MethodGet, metadataIPv4+credentials); got.body != "node" {
			t.Errorf("the node's own request to its metadata service: got %s", got)
		}
	}
	nodeStillReaches()

	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := probe(t, bed, pod); len(got) > 0 {
		t.Errorf("answered after SIGKILL: %q", got)
	}
	noLeaks(t, bed)

	if out, err := bed.Box.Node.Command(t.Context(), "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("nft flush ruleset: %v: %s", err, out)
	}
	if got := probe(t, bed, pod); len(got) > 0 {
		t.Errorf("answered after nft flush ruleset without an agent: %q", got)
	}
	nodeStillReaches()
	noLeaks(t, bed)

	next := startAgent(t, bed)
	if got := get(t, pod, credentials); got.body != "orders" {
		t.Errorf("with a new agent: got %s", got)
	}
	if err := next.Stop(); err != nil {
		t.Error(err)
	}
	if got := probe(t, bed, pod); len(got) > 0 {
		t.Errorf("answered after SIGTERM: %q", got)
	}
	noLeaks(t, bed)
}

// TestRulesAreRepaired: a flush while the agent runs is found by its sweep, and never a leak.
func TestRulesAreRepaired(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	agent := startAgent(t, bed, "--redirect-sweep=1s")
	if out, err := bed.Box.Node.Command(t.Context(), "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("nft flush ruleset: %v: %s", err, out)
	}
	eventually(t, "served again", func() string {
		if got := get(t, pod, credentials); got.body != "orders" {
			return got.String()
		}
		return ""
	})
	eventually(t, "repair counted", func() string {
		text, err := agent.Metrics(t.Context())
		// One flush may be heard of in two parts.
		if err != nil || !regexp.MustCompile(`(?m)^podrole_redirect_repairs_total [12]$`).MatchString(text) {
			return fmt.Sprint(err, regexp.MustCompile(`(?m)^podrole_redirect.*$`).FindAllString(text, -1))
		}
		return ""
	})
	noLeaks(t, bed)
}

// TestWhatPodsAreRefused holds the agent against the metadata service's protocol, from inside a pod.
func TestWhatPodsAreRefused(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	startAgent(t, bed)
	token := ask(t.Context(), pod.Namespace, http.MethodPut, metadataIPv4+tokenPath, ttlHeader, "60")
	if token.status != http.StatusOK || token.body == "" {
		t.Fatalf("token: got %s", token)
	}
	tests := []struct {
		name, method, path string
		headers            []string
		want               int
	}{
		{"own_role", "GET", credentials + "orders", nil, 200},
		{"own_role_with_token", "GET", credentials + "orders", []string{tokenHeader, token.body}, 200},
		{"unknown_path", "GET", "/latest/meta-data/iam/nothing", nil, 404},
		{"user_data", "GET", "/latest/user-data", nil, 404},
		{"user_data_by_a_detour", "GET", "/latest/meta-data/%2e%2e/user-data", nil, 404},
		{"nodes_identity_credentials", "GET", "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance", nil, 404},
		{"nodes_role", "GET", credentials + "node", nil, 404},
		{"nodes_role_by_another_version", "GET", "/2021-07-15/meta-data/iam/security-credentials/node", nil, 404},
		{"bad_token", "GET", credentials, []string{tokenHeader, "bad"}, 401},
		{"post", "POST", credentials, nil, 405},
		{"delete", "DELETE", "/latest/meta-data/", nil, 405},
		{"token_without_ttl", "PUT", tokenPath, nil, 400},
		{"token_with_ttl_too_long", "PUT", tokenPath, []string{ttlHeader, "21601"}, 400},
		{"forwarded", "PUT", tokenPath, []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		{"region", "GET", "/latest/meta-data/placement/region", nil, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ask(t.Context(), pod.Namespace, tt.method, metadataIPv4+tt.path, tt.headers...)
			if got.err != nil || got.status != tt.want {
				t.Errorf("got %s, want %d", got, tt.want)
			}
			if strings.HasPrefix(strings.TrimSpace(got.body), "{") && tt.want != 200 {
				t.Errorf("an error in JSON, which some SDKs take for credentials: %s", got)
			}
		})
	}
	noLeaks(t, bed)
}

// TestAddressReuse: whoever has an address now is who counts.
func TestAddressReuse(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	orders, reports := addPod(t, bed, "orders", "orders"), addPod(t, bed, "reports", "reports")
	startAgent(t, bed)
	if err := orders.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := bed.Delete("Pod", "shop", "orders-0"); err != nil {
		t.Fatal(err)
	}
	next, err := bed.Box.AddPod(nodebox.PodConfig{Namespace: "shop", Name: "reports-1", IP: orders.IP})
	if err != nil {
		t.Fatal(err)
	}
	if err := bed.Run(next, "reports"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "served as the new pod", func() string {
		if got := get(t, next, credentials); got.body != "reports" {
			return got.String()
		}
		return ""
	})
	if got := get(t, reports, credentials); got.body != "reports" {
		t.Errorf("the other pod: got %s", got)
	}
}

// TestRoleTakenAway: an annotation that is removed, emptied or replaced counts at once.
func TestRoleTakenAway(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	other, err := bed.AddRole("other", "shop", "orders")
	if err != nil {
		t.Fatal(err)
	}
	startAgent(t, bed)
	expect := func(role, body string, status int) {
		t.Helper()
		if err := bed.AddServiceAccount("shop", "orders", role); err != nil {
			t.Fatal(err)
		}
		eventually(t, "role "+role, func() string {
			if got := get(t, pod, credentials); got.status != status || status == http.StatusOK && got.body != body {
				return got.String()
			}
			return ""
		})
	}
	expect(other, "other", http.StatusOK)
	expect("", "", http.StatusNotFound)
	expect(other, "other", http.StatusOK)
}

// TestDeniedByAWS: a role whose trust policy does not name us is a 404 with the reason in the log, and nothing else.
func TestDeniedByAWS(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	err := bed.AWS.PutRole(awstest.Role{
		ARN:   "arn:aws:iam::" + testbed.Account + ":role/orders",
		Trust: awstest.TrustPrincipals("arn:aws:iam::" + testbed.Account + ":role/somebody-else"),
	})
	if err != nil {
		t.Fatal(err)
	}
	agent := startAgent(t, bed)
	if got := get(t, pod, credentials+"orders"); got.status != http.StatusNotFound {
		t.Errorf("got %s, want 404", got)
	}
	eventually(t, "log that says which role AWS denied", func() string {
		if log := agent.Log(); !strings.Contains(log, "AccessDenied") || !strings.Contains(log, "role/orders") {
			return "it does not"
		}
		return ""
	})
}

// TestBadObjectsLeaveTheLastGoodState: a broken file stops a start, and no running agent.
func TestBadObjectsLeaveTheLastGoodState(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	agent := startAgent(t, bed)
	file := filepath.Join(bed.Objects, "serviceaccount-shop-orders.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: ServiceAccount\nmetadata: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "error logged", func() string {
		if !strings.Contains(agent.Log(), "serviceaccount-shop-orders.yaml:") {
			return "no file and line in the log"
		}
		return ""
	})
	if got := get(t, pod, credentials); got.body != "orders" {
		t.Errorf("got %s", got)
	}
	if err := agent.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := bed.StartAgent(t.Context()); err == nil || !strings.Contains(err.Error(), "serviceaccount-shop-orders.yaml:") {
		t.Errorf("a start with a broken file: %v", err)
	}
}

// TestNoSecretIsPrinted: nothing that a pod may use to sign is in the log or the metrics of a whole run.
func TestNoSecretIsPrinted(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	agent := startAgent(t, bed, "--log-level=debug")
	got := get(t, pod, credentials+"orders")
	var session struct{ SecretAccessKey, Token string }
	if err := json.Unmarshal([]byte(got.body), &session); err != nil || session.SecretAccessKey == "" || session.Token == "" {
		t.Fatalf("got %s, %v", got, err)
	}
	metrics, err := agent.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Stop(); err != nil {
		t.Error(err)
	}
	for what, secret := range map[string]string{"secret access key": session.SecretAccessKey, "session token": session.Token} {
		if strings.Contains(agent.Log(), secret) || strings.Contains(metrics, secret) {
			t.Errorf("the %s is in the log or the metrics", what)
		}
	}
	if strings.Contains(metrics, pod.IP.String()) || strings.Contains(metrics, pod.Config.UID) {
		t.Error("the metrics name a pod's address or UID")
	}
}

// TestUninstallLeavesNothing: pods are as they were before podrole, which is to say: the node.
func TestUninstallLeavesNothing(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	stateDir := "--state-dir=" + filepath.Join(bed.Box.Dir, "state")
	agent := startAgent(t, bed, stateDir, "--state-dir-on-disk")
	binary, err := nodebox.BuildAgent(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	out, err := bed.Box.Node.Command(t.Context(), binary, "uninstall", stateDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "an agent serves this node") {
		t.Errorf("uninstall beside an agent: %v: %s", err, out)
	}
	if got := get(t, pod, credentials); got.body != "orders" {
		t.Errorf("after an uninstall that was refused: got %s", got)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, bed)
	if out, err := bed.Box.Node.Command(t.Context(), binary, "uninstall", stateDir).CombinedOutput(); err != nil {
		t.Fatalf("uninstall: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(bed.Box.Dir, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("--state-dir is still there: %v", err)
	}
	for _, command := range [][]string{
		{"iptables-nft-save"}, {"ip6tables-nft-save"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "address", "show", "lo"},
	} {
		out, err := bed.Box.Node.Command(t.Context(), command[0], command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
		if regexp.MustCompile(`(?i)podrole|prohibit|169\.254\.77\.1|fd70:`).Match(out) {
			t.Errorf("%q after uninstall:\n%s", command, out)
		}
	}
	if got := get(t, pod, credentials); got.body != "node" {
		t.Errorf("after uninstall a pod gets %s, want what it had before podrole", got)
	}
}

// TestGuardedWhateverElseFails: an agent that cannot do the rest of its start has guarded the node all the same.
func TestGuardedWhateverElseFails(t *testing.T) {
	for name, flag := range map[string]string{
		"no_iptables": "PATH", // an environment without the programs
		"no_objects":  "--kube-objects=/nonexistent",
	} {
		t.Run(name, func(t *testing.T) {
			bed := newBed(t, testbed.Config{})
			pod := addPod(t, bed, "orders", "orders")
			if flag == "PATH" {
				t.Setenv("PATH", "/nonexistent")
				flag = "--drain=1s"
			}
			if _, err := bed.StartAgent(t.Context(), flag); err == nil {
				t.Fatal("the agent started")
			}
			if got := probe(t, bed, pod); len(got) > 0 {
				t.Errorf("answered: %q", got)
			}
			noLeaks(t, bed)
		})
	}
}

// TestIPv6SwitchedOff: a node whose kernel has IPv6, but where it is switched off, is served over IPv4.
func TestIPv6SwitchedOff(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	if !bed.Box.HasIPv6() {
		t.Skip("the kernel has no IPv6 to switch off")
	}
	pod := addPod(t, bed, "orders", "orders")
	if out, err := bed.Box.Node.Command(t.Context(), "sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1").CombinedOutput(); err != nil {
		t.Fatalf("switch IPv6 off: %v: %s", err, out)
	}
	startAgent(t, bed)
	if got := get(t, pod, credentials); got.body != "orders" {
		t.Errorf("got %s", got)
	}
	noLeaks(t, bed)
}

// TestBareRoleNames: kube2iam's way, with the account of the node and the pod's own annotation.
func TestBareRoleNames(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	if err := bed.AddServiceAccount("shop", "orders", "orders"); err != nil { // a name, no ARN
		t.Fatal(err)
	}
	startAgent(t, bed, "--discover-base-role-arn")
	if got := get(t, pod, credentials+"orders"); got.status != http.StatusOK {
		t.Errorf("got %s", got)
	}
}

// TestRestartKeepsSessionsAndTokens: the next agent serves what the last one minted, without a call to STS, and takes
// its IMDSv2 tokens; and a role that was taken away meanwhile is not served.
func TestRestartKeepsSessionsAndTokens(t *testing.T) {
	bed := newBed(t, testbed.Config{Flags: []string{"--state-dir-on-disk"}})
	stateDir := "--state-dir=" + filepath.Join(bed.Box.Dir, "state")
	orders, reports := addPod(t, bed, "orders", "orders"), addPod(t, bed, "reports", "reports")
	agent := startAgent(t, bed, stateDir)
	token := ask(t.Context(), orders.Namespace, http.MethodPut, metadataIPv4+tokenPath, ttlHeader, "600")
	before := get(t, orders, credentials+"orders", tokenHeader, token.body)
	if before.status != http.StatusOK {
		t.Fatalf("got %s", before)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := bed.AddServiceAccount("shop", "reports", ""); err != nil {
		t.Fatal(err)
	}
	bed.AWS.ResetCalls()
	startAgent(t, bed, stateDir)
	if after := get(t, orders, credentials+"orders", tokenHeader, token.body); after.body != before.body {
		t.Errorf("after a restart: got %s, want what it had before", after)
	}
	if got := get(t, reports, credentials+"reports"); got.status != http.StatusNotFound {
		t.Errorf("a role taken away while no agent ran: got %s, want 404", got)
	}
	if n := bed.AWS.Count(awstest.Filter{Action: "AssumeRole"}); n != 0 {
		t.Errorf("%d calls to STS for sessions that were still good", n)
	}
}
