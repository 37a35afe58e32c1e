package proxy

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// withUpstream runs f in a bubble with a node whose metadata comes from an upstream, of which every pod may read
// spot/*, and single pods what is put into the allowances.
func withUpstream(t *testing.T, f func(t *testing.T, n *node, l *pipes, u *upstream, a fakeAllowances)) {
	synctest.Test(t, func(t *testing.T) {
		u := newUpstream()
		store := u.store(mustPatterns(t, "spot/*")...)
		allowances := fakeAllowances{newMemory[role.Workload, []metadata.Pattern]()}
		n := newNode(t, func(c *Config) { c.Metadata, c.Allowances = store, allowances })
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- store.Run(ctx) }()
		go func() { ended <- n.Serve(ctx, l) }()
		synctest.Wait()
		f(t, n, l, u, allowances)
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMetadataOfSinglePods(t *testing.T) {
	const ms = time.Millisecond
	const never = time.Hour
	const vpc = "/latest/" + macPath + "/vpc-id"
	tests := []struct {
		name               string
		identity, decision time.Duration // when each is known
		latency            time.Duration // of upstream
		allowed            string
		path               string
		code               int
		body               string
		took               time.Duration
	}{
		{name: "allowed", allowed: "network/interfaces/macs/**", path: vpc, code: 200, body: "vpc-1"},
		{name: "allowed_any_version", allowed: "network/interfaces/macs/**", path: "/2021-07-15/" + macPath + "//vpc-id/", code: 200, body: "vpc-1"},
		{name: "listing", allowed: "network/interfaces/macs/**", path: "/latest/" + macPath + "/", code: 200, body: "mac\nvpc-id"},
		{name: "listing_on_the_way", allowed: "network/interfaces/macs/**", path: "/latest/meta-data/network/", code: 200, body: "interfaces/"},
		{name: "listing_from_the_top", allowed: "network/interfaces/macs/**", path: "/latest/meta-data/", code: 200, body: "iam/\nnetwork/\nplacement/\nservices/"},
		{name: "listing_of_what_is_absent", allowed: "vifs/**", path: "/latest/meta-data/", code: 200, body: "iam/\nplacement/\nservices/"},
		{name: "listing_for_all", path: "/latest/meta-data/", code: 200, body: "iam/\nplacement/\nservices/"},
		{name: "listing_for_all_of_no_other", allowed: "network/**", path: "/latest/meta-data/placement/", code: 200, body: "availability-zone\nregion"},
		{name: "listing_late_identity", identity: 500 * ms, allowed: "network/**", path: "/latest/meta-data/", code: 200, body: "iam/\nnetwork/\nplacement/\nservices/", took: 500 * ms},
		{name: "listing_late_decision", decision: 500 * ms, path: "/latest/meta-data/", code: 200, body: "iam/\nplacement/\nservices/", took: 500 * ms},
		{name: "listing_unknown", identity: never, allowed: "network/**", path: "/latest/meta-data/", code: 503, took: 900 * ms},
		{name: "listing_upstream_hangs", latency: never, allowed: "network/**", path: "/latest/meta-data/", code: 200, body: "iam/\nplacement/\nservices/", took: 900 * ms},
		{name: "listing_upstream_does_not_matter", latency: never, path: "/latest/meta-data/", code: 200, body: "iam/\nplacement/\nservices/"},
		{name: "listing_of_trees", identity: never, path: "/latest/", code: 200, body: "dynamic\nmeta-data"},
		{name: "listing_of_credentials", identity: never, path: "/latest/meta-data/iam/", code: 200, body: "info\nsecurity-credentials/"},
		{name: "listing_of_signatures", identity: never, path: "/latest/dynamic/instance-identity/", code: 200, body: "document"},
		{name: "not_this", allowed: "network/interfaces/macs/*/mac", path: vpc, code: 404},
		{name: "nothing", path: vpc, code: 404},
		{name: "absent", allowed: "network/**", path: "/latest/meta-data/network/nothing", code: 404},
		{name: "late_identity", identity: 500 * ms, allowed: "network/**", path: vpc, code: 200, body: "vpc-1", took: 500 * ms},
		{name: "late_decision", decision: 500 * ms, allowed: "network/**", path: vpc, code: 200, body: "vpc-1", took: 500 * ms},
		{name: "late_refusal", decision: 500 * ms, path: vpc, code: 404, took: 500 * ms},
		{name: "late_upstream", latency: 300 * ms, allowed: "network/**", path: vpc, code: 200, body: "vpc-1", took: 300 * ms},
		{name: "one_budget", identity: 500 * ms, decision: 700 * ms, latency: 300 * ms, allowed: "network/**", path: vpc, code: 503, took: 900 * ms},
		{name: "unknown", identity: never, path: vpc, code: 503, took: 900 * ms},
		{name: "undecided", decision: never, path: vpc, code: 503, took: 900 * ms},
		{name: "upstream_hangs", latency: never, allowed: "network/**", path: vpc, code: 503, took: 900 * ms},
		{name: "for_all_by_pattern", identity: never, path: "/latest/meta-data/spot/instance-action", code: 200, body: `{"action": "stop"}`},
		{name: "public", identity: never, path: regionPath, code: 200, body: "eu-west-1"},
		{name: "user_data", identity: never, path: "/latest/user-data", code: 404},
		{name: "signature", identity: never, path: "/latest/dynamic/instance-identity/pkcs7", code: 404},
		{name: "node_credentials", identity: never, path: "/latest/meta-data/identity-credentials/ec2/info", code: 404},
		{name: "escapes", identity: never, path: "/latest/meta-data/network/%252e%252e/iam", code: 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withUpstream(t, func(t *testing.T, n *node, l *pipes, u *upstream, a fakeAllowances) {
				u.set(func(u *upstream) { u.latency = tt.latency })
				after(tt.identity, func() { n.identity.put(netip.MustParseAddr(podIP), testPod("web")) })
				after(tt.decision, func() { a.put(testPod("web"), mustPatterns(t, tt.allowed)) })
				synctest.Wait()
				began := time.Now()
				r := parse(t, l.ask(podIP, get(tt.path)))
				took := time.Since(began)
				if code := codeOf(t, r); code != tt.code || took != tt.took || code == 200 && r.body != tt.body {
					t.Errorf("%s %q after %s, want %d %q after %s", r.status, r.body, took, tt.code, tt.body, tt.took)
				}
				time.Sleep(never)
			})
		})
	}
}

// The token of another pod is no good for what only some pods may read, and neither is an answer that was fetched for
// another pod.
func TestMetadataOfOtherPods(t *testing.T) {
	withUpstream(t, func(t *testing.T, n *node, l *pipes, u *upstream, a fakeAllowances) {
		const vpc = "/latest/" + macPath + "/vpc-id"
		source := netip.MustParseAddr(podIP)
		n.identity.put(source, testPod("web"))
		a.put(testPod("web"), mustPatterns(t, "network/**"))
		token := parse(t, l.ask(podIP, put("300"))).body
		if got := status(t, l.ask(podIP, get(vpc, withToken(token)))); got != 200 {
			t.Errorf("the pod itself: %d", got)
		}
		n.identity.put(source, testPod("next"))
		a.put(testPod("next"), mustPatterns(t, "network/**"))
		if got := status(t, l.ask(podIP, get(vpc, withToken(token)))); got != 401 {
			t.Errorf("the next pod at its address, with its token: %d, want 401", got)
		}
		const other = "10.1.2.4"
		n.identity.put(netip.MustParseAddr(other), testPod("other"))
		a.put(testPod("other"), nil)
		if got := status(t, l.ask(other, get(vpc))); got != 404 {
			t.Errorf("another pod: %d, want 404", got)
		}
		u.set(func(u *upstream) { u.broken = true })
		if got := status(t, l.ask(podIP, get("/latest/"+macPath+"/mac"))); got != 503 {
			t.Errorf("while upstream is broken: %d, want 503", got)
		}
		if got := status(t, l.ask(podIP, get("/latest/meta-data/"))); got != 200 {
			t.Errorf("listing for all while upstream is broken: %d, want 200", got)
		}
	})
}

// What the node's metadata service has not told yet is not known; that it is not there, pods are told when it says so.
func TestMetadataUntilUpstreamAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUpstream()
		u.broken = true
		store := u.store()
		n := newNode(t, func(c *Config) { c.Metadata = store })
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- store.Run(ctx) }()
		go func() { ended <- n.Serve(ctx, l) }()
		const zoneID = "/latest/meta-data/placement/availability-zone-id"
		<-store.Loaded()
		for path, want := range map[string]int{regionPath: 200, zoneID: 503, "/latest/user-data": 404} {
			if got := status(t, l.ask(podIP, get(path))); got != want {
				t.Errorf("%s while upstream is broken: %d, want %d", path, got, want)
			}
		}
		u.set(func(u *upstream) { u.broken = false })
		time.Sleep(time.Second)
		synctest.Wait()
		if got := status(t, l.ask(podIP, get(zoneID))); got != 404 {
			t.Errorf("%s when upstream says that there is none: %d, want 404", zoneID, got)
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}
