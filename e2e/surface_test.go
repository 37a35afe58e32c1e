package e2e_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestMetadataAllow: what a controller's ServiceAccount is allowed of the node's metadata, its pods read, and no other pod;
// and nobody reads what makes one a node, whatever an annotation says.
func TestMetadataAllow(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	controller, other := addPod(t, bed, "controller", ""), addPod(t, bed, "other", "other")
	greedy := addPod(t, bed, "greedy", "")
	allow := func(account, patterns string) {
		t.Helper()
		annotations := map[string]any{"podrole.io/metadata-allow": patterns}
		if err := bed.Put("ServiceAccount", "shop", account, map[string]any{"annotations": annotations}, nil); err != nil {
			t.Fatal(err)
		}
	}
	allow("controller", "network/interfaces/macs/**")
	allow("greedy", "network/interfaces/macs/**, iam/**")
	agent := startAgent(t, bed)

	const macs = "/latest/meta-data/network/interfaces/macs/"
	list := get(t, controller, macs)
	if list.status != http.StatusOK || list.body == "" {
		t.Fatalf("the controller lists its node's interfaces: got %s", list)
	}
	mac, _, _ := strings.Cut(list.body, "\n")
	if got := get(t, controller, macs+strings.TrimSuffix(mac, "/")+"/local-ipv4s"); got.body != bed.Box.NodeIP.String() {
		t.Errorf("the controller reads of an interface: got %s", got)
	}
	for who, pod := range map[string]*nodebox.Pod{"another pod": other, "one whose annotation cannot be read": greedy} {
		if got := get(t, pod, macs); got.status != http.StatusNotFound {
			t.Errorf("%s: got %s, want 404", who, got)
		}
	}
	if got := get(t, greedy, credentials); got.status != http.StatusNotFound {
		t.Errorf("the node's role: got %s, want 404", got)
	}
	eventually(t, "the annotation that cannot be read is named", func() string {
		if !strings.Contains(agent.Log(), `metadata pattern \"iam/**\"`) {
			return "it is not in the log"
		}
		return ""
	})

	allow("controller", "")
	eventually(t, "taken away again", func() string {
		if got := get(t, controller, macs); got.status != http.StatusNotFound {
			return got.String()
		}
		return ""
	})
	noLeaks(t, bed)
}

// TestNodeFacts: what pods are told of their node comes from its metadata service from the first request on, or from flags
// where there is none, as far as flags allow it.
func TestNodeFacts(t *testing.T) {
	const (
		id   = "/latest/meta-data/instance-id"
		zone = "/latest/meta-data/placement/availability-zone/"
		macs = "/latest/meta-data/network/interfaces/macs/"
	)
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "web", "")
	for _, c := range []struct {
		flags          []string
		id, zone, macs int // status
		zoneIs         string
	}{
		{nil, 200, 200, 404, testbed.Region + "a"},
		{[]string{"--metadata-allow=network/interfaces/macs/**", "--availability-zone=" + testbed.Region + "b"}, 200, 200, 200, testbed.Region + "a"},
		{[]string{"--instance-facts=false"}, 404, 200, 404, testbed.Region + "a"},
		{[]string{"--metadata-upstream=false"}, 404, 404, 404, ""},
		{[]string{"--metadata-upstream=false", "--availability-zone=" + testbed.Region + "b"}, 404, 200, 404, testbed.Region + "b"},
	} {
		agent := startAgent(t, bed, c.flags...)
		for path, want := range map[string]int{id: c.id, zone: c.zone, macs: c.macs} {
			if got := get(t, pod, path); got.status != want {
				t.Errorf("%v: %s: got %s, want %d", c.flags, path, got, want)
			}
		}
		if got := get(t, pod, zone); c.zone == 200 && got.body != c.zoneIs {
			t.Errorf("%v: the zone is %s, want %s", c.flags, got, c.zoneIs)
		}
		if err := agent.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	noLeaks(t, bed)
}

// TestNodeLabels: without a metadata service, pods are told what the labels of the Node say, as soon as they do.
func TestNodeLabels(t *testing.T) {
	authority := testbed.DirectTokens("../manifests")
	authority.RBAC = append(authority.RBAC, "../manifests/options/node-labels/rbac.yaml")
	s := newClusterStage(t, testbed.ClusterConfig{Authority: authority})
	s.must(t, s.cluster.AddServiceAccount("shop", "web", ""))
	pod := s.addPod(t, "web-0", "web")
	s.start(t, "--metadata-upstream=false")
	const zone = "/latest/meta-data/placement/availability-zone/"
	if got := get(t, pod, zone); got.status != http.StatusNotFound {
		t.Errorf("without labels, the zone is %s, want 404", got)
	}
	labels := map[string]string{
		"topology.kubernetes.io/region": testbed.Region, "topology.kubernetes.io/zone": testbed.Region + "c",
	}
	s.must(t, s.cluster.API.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: testbed.NodeName, Labels: labels}}))
	eventually(t, "the zone of the labels", func() string {
		if got := get(t, pod, zone); got.body != testbed.Region+"c" {
			return got.String()
		}
		return ""
	})
}

// TestMetadataAddress: the metadata service can be at another address.
func TestMetadataAddress(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	s.addAccount(t, "orders")
	pod := s.addPod(t, "orders-0", "orders")
	s.start(t, "--metadata-address=169.254.169.250")
	for host, want := range map[string]int{"169.254.169.250": http.StatusOK, "169.254.169.254": http.StatusForbidden} {
		got := ask(t.Context(), pod.Namespace, http.MethodGet, "http://169.254.169.250"+credentials, "Host", host)
		if got.status != want || want == http.StatusOK && got.body != "orders" {
			t.Errorf("as %s: got %s, want %d", host, got, want)
		}
	}
}

// TestRequestRate: what a pod asks beyond its rate is delayed and closed, never answered with an error that an SDK would take
// for final, and takes nothing from another pod.
func TestRequestRate(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	greedy, other := addPod(t, bed, "greedy", "greedy"), addPod(t, bed, "other", "other")
	startAgent(t, bed, "--request-rate=2")
	const burst, asked = 10, 40
	answers := make([]answer, asked)
	var asking sync.WaitGroup
	for i := range answers {
		asking.Go(func() { answers[i] = ask(t.Context(), greedy.Namespace, http.MethodGet, metadataIPv4+credentials) })
	}
	asking.Wait()
	served := 0
	for _, got := range answers {
		switch {
		case got.err == nil && got.body == "greedy":
			served++
		case got.err == nil:
			t.Errorf("beyond the rate: got %s", got)
		}
	}
	if served < burst || served > burst+5 {
		t.Errorf("%d of %d at once were answered, want %d and what a second brings", served, asked, burst)
	}
	if got := get(t, other, credentials); got.body != "other" {
		t.Errorf("another pod: got %s", got)
	}
	noLeaks(t, bed)
}

// TestContainerCredentials: pods find their own role at the addresses of ECS and of EKS Pod Identity, too, if that is switched
// on; and not beside EKS's own agent.
func TestContainerCredentials(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	orders, web := addPod(t, bed, "orders", "orders"), addPod(t, bed, "web", "")
	urls := []string{"http://169.254.170.2/v2/credentials/0f7a", "http://169.254.170.23/v1/credentials"}
	if bed.Box.HasIPv6() {
		urls = append(urls, "http://[fd00:ec2::23]/v1/credentials")
	}
	agent := startAgent(t, bed, "--container-credentials")
	for _, url := range urls {
		got := ask(t.Context(), orders.Namespace, http.MethodGet, url)
		var body struct{ RoleArn, AccessKeyId, Token string }
		if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != http.StatusOK {
			t.Errorf("%s: got %s", url, got)
			continue
		}
		if session, ok := bed.AWS.LookupSession(body.AccessKeyId); !ok || !strings.HasSuffix(session.RoleARN, ":role/orders") ||
			body.RoleArn != session.RoleARN {
			t.Errorf("%s: got a session of %q, called %q", url, session.RoleARN, body.RoleArn)
		}
		if got := ask(t.Context(), web.Namespace, http.MethodGet, url); got.status != http.StatusNotFound {
			t.Errorf("%s, a pod without a role: got %s, want 404", url, got)
		}
	}
	if got := get(t, orders, credentials); got.body != "orders" {
		t.Errorf("the metadata service: got %s", got)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, url := range urls {
		if got := ask(t.Context(), orders.Namespace, http.MethodGet, url); got.err == nil {
			t.Errorf("%s without an agent: got %s", url, got)
		}
	}

	if out, err := bed.Box.Node.Command(t.Context(), "ip", "link", "add", "pod-id-link0", "type", "bridge").CombinedOutput(); err != nil {
		t.Fatalf("add interface: %v: %s", err, out)
	}
	if _, err := bed.StartAgent(t.Context(), "--container-credentials"); err == nil || !strings.Contains(err.Error(), "EKS Pod Identity Agent") {
		t.Errorf("beside the EKS Pod Identity Agent: got %v", err)
	}
	startAgent(t, bed) // without the flag it gets on with it
	noLeaks(t, bed)
}
