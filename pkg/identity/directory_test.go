package identity_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	cachetest "k8s.io/client-go/tools/cache/testing"

	"github.com/podrole/podrole/pkg/identity"
	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
	"github.com/podrole/podrole/pkg/role"
)

// cluster is an API server's part, and the follower that writes down what it is told.
type cluster struct {
	pods       *cachetest.FakeControllerSource
	accounts   map[string]*cachetest.FakeControllerSource
	namespaces map[string]*cachetest.FakeControllerSource
	directory  *identity.Directory

	mu    sync.Mutex // guards the following
	facts map[string]role.Facts
	gone  []string
}

func (c *cluster) Known(f role.Facts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.facts[f.Workload.UID] = f
}

func (c *cluster) Gone(w role.Workload) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.facts, w.UID)
	c.gone = append(c.gone, w.UID)
}

func (c *cluster) known(uid string) (role.Facts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.facts[uid]
	return f, ok
}

// start runs a Directory over an empty cluster with the namespaces shop and bank, in a synctest bubble, and ends it
// with the test.
func start(t *testing.T, edit ...func(*identity.Config)) *cluster {
	c := &cluster{
		pods:       cachetest.NewFakeControllerSource(),
		accounts:   map[string]*cachetest.FakeControllerSource{},
		namespaces: map[string]*cachetest.FakeControllerSource{},
		facts:      map[string]role.Facts{},
	}
	for _, ns := range []string{"shop", "bank"} {
		c.accounts[ns] = cachetest.NewFakeControllerSource()
		c.namespaces[ns] = cachetest.NewFakeControllerSource()
	}
	var err error
	cfg := identity.Config{
		Sources: identity.Sources{
			Pods:            c.pods,
			ServiceAccounts: func(ns string) cache.ListerWatcher { return c.accounts[ns] },
			Namespaces:      func(ns string) cache.ListerWatcher { return c.namespaces[ns] },
		},
		Follower: c,
		Logger:   slog.New(slog.DiscardHandler),
	}
	for _, e := range edit {
		e(&cfg)
	}
	if c.directory, err = identity.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.directory.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		c.pods.Shutdown()
		for ns := range c.accounts {
			c.accounts[ns].Shutdown()
			c.namespaces[ns].Shutdown()
		}
	})
	return c
}

func newPod(ns, name, uid string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{ServiceAccountName: "app"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

func withIPs(ips ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.PodIP = ips[0]
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
}

func phase(ph corev1.PodPhase) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.Phase = ph } }

func metadata(ns, name string, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: annotations},
	}
}

// expect checks who is at each address; "" stands for nobody.
func (c *cluster) expect(t *testing.T, want map[string]string) {
	t.Helper()
	synctest.Wait()
	for ip, uid := range want {
		w, ok := c.directory.Lookup(netip.MustParseAddr(ip))
		if ok != (uid != "") || w.UID != uid {
			t.Errorf("%s belongs to %q, want %q", ip, w.UID, uid)
		}
	}
}

// expectSoon waits, in the bubble's time, until a pod is at an address.
func (c *cluster) expectSoon(t *testing.T, ip, uid string) {
	t.Helper()
	const patience = 2 * time.Minute
	for began := time.Now(); ; time.Sleep(time.Second) {
		w, _ := c.directory.Lookup(netip.MustParseAddr(ip))
		if w.UID == uid {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s belongs to %q after %s, want %q", ip, w.UID, patience, uid)
		}
	}
}

func bubble(t *testing.T, test func(*testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

func TestWhoOwnsAnAddress(t *testing.T) {
	ended := func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{
			{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
		}
	}
	deleting := func(p *corev1.Pod) {
		p.DeletionTimestamp = new(metav1.Now())
	}
	tests := []struct {
		name string
		pods []*corev1.Pod
		want map[string]string
	}{
		{"one_pod", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"))}, map[string]string{"10.0.0.1": "1", "10.0.0.2": ""}},
		{"dual_stack", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1", "fd00::1"))}, map[string]string{"10.0.0.1": "1", "fd00::1": "1"}},
		{
			"two_claimants_are_nobody",
			[]*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1")), newPod("bank", "b", "2", withIPs("10.0.0.1"))},
			map[string]string{"10.0.0.1": ""},
		},
		{
			"finished_pods_own_nothing",
			[]*corev1.Pod{
				newPod("shop", "a", "1", withIPs("10.0.0.1"), phase(corev1.PodSucceeded)),
				newPod("shop", "b", "2", withIPs("10.0.0.2"), phase(corev1.PodFailed)),
				newPod("shop", "c", "3", withIPs("10.0.0.1")),
			},
			map[string]string{"10.0.0.1": "3", "10.0.0.2": ""},
		},
		{
			"host_network_owns_nothing",
			[]*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"), func(p *corev1.Pod) { p.Spec.HostNetwork = true })},
			map[string]string{"10.0.0.1": ""},
		},
		{"between_restarts", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"), ended)}, map[string]string{"10.0.0.1": "1"}},
		{"terminating", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"), deleting)}, map[string]string{"10.0.0.1": "1"}},
		{"terminated", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"), deleting, ended)}, map[string]string{"10.0.0.1": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := start(t)
				for _, p := range tt.pods {
					c.pods.Add(p)
				}
				c.expect(t, tt.want)
			})
		})
	}
}

func TestAddressFollowsThePod(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "a", "1", withIPs("10.0.0.1")))
		c.expect(t, map[string]string{"10.0.0.1": "1"})

		c.pods.Modify(newPod("shop", "a", "1", withIPs("10.0.0.9")))
		c.expect(t, map[string]string{"10.0.0.1": "", "10.0.0.9": "1"})

		c.pods.Modify(newPod("shop", "a", "1", withIPs("10.0.0.9"), phase(corev1.PodSucceeded)))
		c.pods.Add(newPod("bank", "b", "2", withIPs("10.0.0.9")))
		c.expect(t, map[string]string{"10.0.0.9": "2"})

		// A StatefulSet's pod comes back under its old name.
		c.pods.Delete(newPod("bank", "b", "2"))
		c.pods.Add(newPod("bank", "b", "3", withIPs("10.0.0.10")))
		c.expect(t, map[string]string{"10.0.0.9": "", "10.0.0.10": "3"})
		if !slices.Contains(c.gone, "2") {
			t.Errorf("nobody was told that pod 2 is gone: %v", c.gone)
		}
	})
}

// TestUnknownIsNotNone: a pod's facts are passed on only when pod, ServiceAccount and Namespace have all been read.
func TestUnknownIsNotNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "a", "1", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"k": "pod"}
			p.Spec.Containers = []corev1.Container{
				{Name: "side", Env: []corev1.EnvVar{{Name: "HOME", Value: "/"}}},
				{Name: "main", Env: []corev1.EnvVar{{Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: "/token"}}},
			}
		}))
		synctest.Wait()
		if f, ok := c.known("1"); ok {
			t.Fatalf("decided on %+v before anything but the pod was read", f)
		}
		c.namespaces["shop"].Add(metadata("", "shop", nil))
		synctest.Wait()
		if f, ok := c.known("1"); ok {
			t.Fatalf("decided on %+v before the ServiceAccount was read", f)
		}
		c.accounts["shop"].Add(metadata("shop", "other", nil))
		synctest.Wait()
		if f, ok := c.known("1"); ok {
			t.Fatalf("decided on %+v with another ServiceAccount", f)
		}
		c.accounts["shop"].Add(metadata("shop", "app", map[string]string{"k": "account"}))
		synctest.Wait()
		want := role.Facts{
			Workload:       role.Workload{Namespace: "shop", Name: "a", UID: "1", ServiceAccount: "app"},
			Pod:            map[string]string{"k": "pod"},
			ServiceAccount: map[string]string{"k": "account"},
			Bypass:         "AWS_WEB_IDENTITY_TOKEN_FILE",
		}
		f, _ := c.known("1")
		if diff := cmp.Diff(want, f); diff != "" {
			t.Errorf("facts (-want +got):\n%s", diff)
		}
	})
}

func TestChangesReachTheFollower(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.namespaces["shop"].Add(metadata("", "shop", nil))
		c.accounts["shop"].Add(metadata("shop", "app", nil))
		c.pods.Add(newPod("shop", "a", "1"))
		synctest.Wait()

		c.accounts["shop"].Modify(metadata("shop", "app", map[string]string{"role": "x"}))
		c.namespaces["shop"].Modify(metadata("", "shop", map[string]string{"permit": "x"}))
		synctest.Wait()
		f, _ := c.known("1")
		if f.ServiceAccount["role"] != "x" || f.Namespace["permit"] != "x" {
			t.Errorf("changed annotations did not arrive: %+v", f)
		}

		c.accounts["shop"].Delete(metadata("shop", "app", nil))
		synctest.Wait()
		if f, ok := c.known("1"); !ok || !f.ServiceAccountWasDeleted {
			t.Errorf("a deleted ServiceAccount left %+v, %v", f, ok)
		}
		c.accounts["shop"].Add(metadata("shop", "app", map[string]string{"role": "y"}))
		synctest.Wait()
		if f, _ := c.known("1"); f.ServiceAccountWasDeleted || f.ServiceAccount["role"] != "y" {
			t.Errorf("a ServiceAccount made anew left %+v", f)
		}
	})
}

func TestSyncedWaitsForFacts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		synctest.Wait()
		select {
		case <-c.directory.Synced():
		default:
			t.Error("a node without pods does not sync")
		}
	})
}

func TestAwaitParksUntilTheAddressIsKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "a", "1"))
		go func() {
			time.Sleep(500 * time.Millisecond)
			c.pods.Modify(newPod("shop", "a", "1", withIPs("10.0.0.1")))
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		defer cancel()
		began := time.Now()
		w, err := c.directory.Await(ctx, netip.MustParseAddr("10.0.0.1"))
		if took := time.Since(began); err != nil || w.UID != "1" || took != 500*time.Millisecond {
			t.Errorf("got %q, %v after %s; want pod 1 after 500ms", w.UID, err, took)
		}
	})
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "a", "1", withIPs("10.0.0.1")))
		c.pods.Add(newPod("shop", "b", "2", withIPs("10.0.0.1")))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		defer cancel()
		_, err := c.directory.Await(ctx, netip.MustParseAddr("10.0.0.1"))
		if e, ok := errors.AsType[*identity.UnknownError](err); !ok || e.Claimants != 2 {
			t.Errorf("got %v, want an UnknownError with 2 claimants", err)
		}
	})
}

func TestScopesEndWithTheirLastPod(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.namespaces["shop"].Add(metadata("", "shop", nil))
		c.accounts["shop"].Add(metadata("shop", "app", nil))
		c.pods.Add(newPod("shop", "a", "1"))
		synctest.Wait()
		c.pods.Delete(newPod("shop", "a", "1"))
		synctest.Wait()
		// Nobody follows the namespace now; a new pod must read it anew and see what changed meanwhile.
		c.accounts["shop"].Modify(metadata("shop", "app", map[string]string{"role": "new"}))
		c.pods.Add(newPod("shop", "b", "2"))
		synctest.Wait()
		if f, ok := c.known("2"); !ok || f.ServiceAccount["role"] != "new" {
			t.Errorf("got %+v, %v", f, ok)
		}
		if !slices.Equal(c.gone, []string{"1"}) {
			t.Errorf("gone: %v, want [1]", c.gone)
		}
	})
}

// benchDirectory is a Directory with a hundred pods, each behind an interface of its own, that a kernel places right.
func benchDirectory(b *testing.B) *identity.Directory {
	pods := cachetest.NewFakeControllerSource()
	sandboxes := map[string]cni.Sandbox{}
	for i := range 100 {
		address := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		uid := address.String()
		pods.Add(newPod("shop", "p"+uid, uid, withIPs(uid)))
		sandboxes[uid] = cni.Sandbox{ID: uid, PodUID: uid, Addresses: []netip.Addr{address}, HostInterface: "veth" + uid}
	}
	empty := func(string) cache.ListerWatcher { return cachetest.NewFakeControllerSource() }
	d, err := identity.New(identity.Config{
		Sources:  identity.Sources{Pods: pods, ServiceAccounts: empty, Namespaces: empty},
		Follower: &cluster{facts: map[string]role.Facts{}},
		Logger:   slog.New(slog.DiscardHandler),
		Locate: func(context.Context, netip.Addr) (node.Place, error) {
			return node.Place{Interface: "veth10.0.0.7", Index: 7}, nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	d.SetSandboxes(sandboxes)
	go func() { _ = d.Run(b.Context()) }()
	if _, err := d.Await(b.Context(), netip.MustParseAddr("10.0.0.7")); err != nil {
		b.Fatal(err)
	}
	return d
}

// BenchmarkResolve is what a request costs here, the kernel's answer apart.
func BenchmarkResolve(b *testing.B) {
	d := benchDirectory(b)
	source := netip.MustParseAddr("10.0.0.7")
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Await(ctx, source); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	d := benchDirectory(b)
	source := netip.MustParseAddr("10.0.0.7")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := d.Lookup(source); !ok {
			b.Fatal("lost the pod")
		}
	}
}

// TestAssume: a pod that was here not long ago is known while the API server is silent and its sandbox is there. Then the
// API server has the word.
func TestAssume(t *testing.T) {
	before := func(name, uid string) role.Workload {
		return role.Workload{Namespace: "shop", Name: name, UID: uid, ServiceAccount: "app"}
	}
	stays, goes, ends, replaced := before("stays", "1"), before("goes", "2"), before("ends", "3"), before("replaced", "4")
	goes.Namespace = "bank"     // of which nothing is heard any more
	late := before("late", "5") // without a sandbox
	all := []role.Workload{stays, goes, ends, replaced, late}
	sandboxes := map[string]cni.Sandbox{
		"1": sandbox("1", "10.0.0.1"), "2": sandbox("2", "10.0.0.2"), "3": sandbox("3", "10.0.0.3"), "4": sandbox("4", "10.0.0.4"),
	}
	bubble(t, func(t *testing.T) {
		list := make(chan struct{})
		c := start(t, func(cfg *identity.Config) {
			if source, ok := cfg.Sources.Pods.(*cachetest.FakeControllerSource); ok {
				cfg.Sources.Pods = withheld(source, list)
			}
		})
		expectGone := func(want ...string) {
			t.Helper()
			c.mu.Lock()
			defer c.mu.Unlock()
			slices.Sort(c.gone)
			if diff := cmp.Diff(want, c.gone); diff != "" {
				t.Errorf("gone (-want +got):\n%s", diff)
			}
		}
		c.directory.SetSandboxes(sandboxes)
		if diff := cmp.Diff(all[:4], c.directory.Assume(all)); diff != "" {
			t.Errorf("taken (-want +got):\n%s", diff)
		}
		c.expect(t, map[string]string{"10.0.0.1": "1", "10.0.0.2": "2", "10.0.0.3": "3", "10.0.0.4": "4"})
		if _, told := c.known("1"); told {
			t.Error("something is told of a pod that was not read")
		}

		changed := maps.Clone(sandboxes)
		changed["1"] = sandbox("1", "10.0.0.9") // made anew
		delete(changed, "3")
		c.directory.SetSandboxes(changed)
		c.expect(t, map[string]string{"10.0.0.9": "1", "10.0.0.1": "", "10.0.0.3": ""})
		expectGone("3")

		c.accounts["shop"].Add(metadata("shop", "app", nil))
		c.namespaces["shop"].Add(metadata("", "shop", nil))
		c.pods.Add(newPod("shop", "stays", "1"))
		c.pods.Add(newPod("shop", "replaced", "6"))
		close(list)
		c.expect(t, map[string]string{"10.0.0.9": "1", "10.0.0.2": "", "10.0.0.4": ""})
		expectGone("2", "3", "4")
		if _, told := c.known("1"); !told {
			t.Error("nothing is told of the pod that is there")
		}
		if taken := c.directory.Assume([]role.Workload{goes}); taken != nil {
			t.Errorf("took %v after the list", taken)
		}
	})
}

// withheld lists nothing until a channel is closed.
func withheld(source *cachetest.FakeControllerSource, until chan struct{}) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
			<-until
			return source.List(o)
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) { return source.Watch(o) },
	}
}

// TestBypass: the variable counts wherever the pod has it, sidecars among its init containers included; and one of the
// container credentials endpoint only where that is not served, or is not where it leads.
func TestBypass(t *testing.T) {
	const token, full, relative = "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
	with := func(variables ...string) []corev1.Container {
		env := []corev1.EnvVar{{Name: "HOME"}}
		for _, v := range variables {
			name, value, _ := strings.Cut(v, "=")
			env = append(env, corev1.EnvVar{Name: name, Value: value})
		}
		return []corev1.Container{{Name: "other"}, {Env: env}}
	}
	set := func(variables ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers = with(variables...) }
	}
	for name, tt := range map[string]struct {
		edit   func(*corev1.Pod)
		want   string
		served string // where the container credentials endpoint is
	}{
		"none":           {func(*corev1.Pod) {}, "", ""},
		"another":        {set("AWS_REGION"), "", ""},
		"container":      {set(token), token, token},
		"init_container": {func(p *corev1.Pod) { p.Spec.InitContainers = with(full) }, full, full},
		"relative":       {set(relative + "=/v2/credentials/0f7a"), relative, ""},
		"relative_other": {set(relative + "=/other"), relative, relative},
		"full":           {set(full + "=http://169.254.170.23/v1/credentials"), full, ""},
		"full_ipv6":      {set(full + "=http://[fd00:ec2::23]/v1/credentials"), full, ""},
		"full_other":     {set(full + "=http://127.0.0.1:8080/credentials"), full, full},
		"both":           {set(full+"=http://169.254.170.23/v1/credentials", token+"=/var/run/token"), full, token},
	} {
		t.Run(name, func(t *testing.T) {
			for served, want := range map[bool]string{false: tt.want, true: tt.served} {
				bubble(t, func(t *testing.T) {
					c := start(t, func(cfg *identity.Config) { cfg.ContainerCredentials = served })
					c.accounts["shop"].Add(metadata("shop", "app", nil))
					c.namespaces["shop"].Add(metadata("", "shop", nil))
					c.pods.Add(newPod("shop", "a", "1", tt.edit))
					synctest.Wait()
					if f, ok := c.known("1"); !ok || f.Bypass != want {
						t.Errorf("endpoint served: %t: known %t, by-pass %q, want %q", served, ok, f.Bypass, want)
					}
				})
			}
		})
	}
}
