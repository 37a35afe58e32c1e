package cni_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podrole/podrole/pkg/identity/cni"
)

// box returns a sandbox of pod shop/name, written at that second, behind an interface of its own.
func box(id, uid, name string, second int64, edit ...func(*cni.Sandbox)) cni.Sandbox {
	s := cni.Sandbox{
		ID: id, PodUID: uid, Namespace: "shop", Name: name, NetNS: "/run/netns/" + id, Network: "net",
		HostInterface: "veth-" + id, Written: time.Unix(second, 0),
	}
	for _, e := range edit {
		e(&s)
	}
	return s
}

func behind(host string, others ...string) func(*cni.Sandbox) {
	return func(s *cni.Sandbox) { s.HostInterface, s.OtherInterfaces = host, others }
}

func on(network string) func(*cni.Sandbox) { return func(s *cni.Sandbox) { s.Network = network } }

func TestWhichSandboxCounts(t *testing.T) {
	tests := []struct {
		name string
		all  []cni.Sandbox
		gone []string // network namespaces, by sandbox ID
		want []cni.Sandbox
	}{
		{name: "none"},
		{
			name: "one_of_each_pod",
			all:  []cni.Sandbox{box("1", "a", "a", 1), box("2", "b", "b", 1)},
			want: []cni.Sandbox{box("1", "a", "a", 1), box("2", "b", "b", 1)},
		},
		{
			name: "sandbox_made_anew",
			all:  []cni.Sandbox{box("2", "a", "a", 2), box("1", "a", "a", 1)},
			want: []cni.Sandbox{box("2", "a", "a", 2)},
		},
		{
			name: "killed_sandbox_or_reboot",
			all:  []cni.Sandbox{box("1", "a", "a", 1), box("2", "b", "b", 2)},
			gone: []string{"1"},
			want: []cni.Sandbox{box("2", "b", "b", 2)},
		},
		{
			name: "older_sandbox_does_not_stand_in",
			all:  []cni.Sandbox{box("1", "a", "a", 1), box("2", "a", "a", 2)},
			gone: []string{"2"},
		},
		{
			name: "same_age_only_one_lives",
			all:  []cni.Sandbox{box("1", "a", "a", 1), box("2", "a", "a", 1)},
			gone: []string{"1"},
			want: []cni.Sandbox{box("2", "a", "a", 1)},
		},
		{
			name: "same_age_both_live",
			all:  []cni.Sandbox{box("1", "a", "a", 1), box("2", "a", "a", 1)},
		},
		{
			name: "outer_plugin_is_written_last",
			all: []cni.Sandbox{
				box("1", "a", "a", 2, on("multus-cni-network")), box("1", "a", "a", 1, on("delegate")),
			},
			want: []cni.Sandbox{box("1", "a", "a", 2, on("multus-cni-network"))},
		},
		{
			name: "pod_of_a_statefulset_comes_back_while_the_last_one_ends",
			all:  []cni.Sandbox{box("1", "old", "a-0", 1, behind("eni1")), box("2", "new", "a-0", 2, behind("eni1"))},
			want: []cni.Sandbox{box("2", "new", "a-0", 2, behind("eni1"))},
		},
		{
			name: "as_old_as_its_predecessor",
			all:  []cni.Sandbox{box("1", "old", "a-0", 1, behind("eni1")), box("2", "new", "a-0", 1, behind("eni1"))},
		},
		{
			name: "same_pod_name_different_interfaces",
			all:  []cni.Sandbox{box("1", "old", "a-0", 1), box("2", "new", "a-0", 2)},
			want: []cni.Sandbox{box("1", "old", "a-0", 1), box("2", "new", "a-0", 2)},
		},
		{
			name: "shared_interface_is_nobodys_own",
			all: []cni.Sandbox{
				box("1", "a", "a", 1, behind("br0", "veth7", "br1")), box("2", "b", "b", 2, behind("br0", "br1")),
			},
			want: []cni.Sandbox{box("1", "a", "a", 1, behind("", "veth7")), box("2", "b", "b", 2, behind(""))},
		},
		{
			name: "the_dead_share_nothing",
			all:  []cni.Sandbox{box("1", "a", "a", 1, behind("br0")), box("2", "b", "b", 2, behind("br0"))},
			gone: []string{"1"},
			want: []cni.Sandbox{box("2", "b", "b", 2, behind("br0"))},
		},
		{
			name: "no_interfaces_share_nothing",
			all:  []cni.Sandbox{box("1", "a", "a", 1, behind("")), box("2", "b", "b", 2, behind(""))},
			want: []cni.Sandbox{box("1", "a", "a", 1, behind("")), box("2", "b", "b", 2, behind(""))},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			exists := func(netns string) bool { return !slices.Contains(tt.gone, netns[len("/run/netns/"):]) }
			want := map[string]cni.Sandbox{}
			for _, s := range tt.want {
				want[s.PodUID] = s
			}
			before := slices.Clone(tt.all)
			for range 2 {
				got := cni.Current(tt.all, exists)
				if diff := cmp.Diff(want, got, compareAddrs, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("sandboxes (-want +got):\n%s", diff)
				}
				slices.Reverse(tt.all) // the order says nothing
			}
			if diff := cmp.Diff(before, tt.all, compareAddrs); diff != "" {
				t.Errorf("the results were changed:\n%s", diff)
			}
		})
	}
}

// TestDelegatesInTheSameCache: results of one container are one sandbox, whose last result counts.
func TestDelegatesInTheSameCache(t *testing.T) {
	files := fixtures(t, "multus-delegates")
	maps.Copy(files, fixtures(t, "multus"))
	var all []cni.Sandbox
	for _, name := range slices.Sorted(maps.Keys(files)) { // cbr0 before multus-cni-network, as they are written
		s, err := cni.Parse(name, files[name])
		if err != nil {
			continue
		}
		s.Written = time.Unix(int64(len(all)), 0)
		all = append(all, s)
	}
	got := cni.Current(all, func(string) bool { return true })
	if len(all) != 2 || len(got) != 1 {
		t.Fatalf("%d results are %d sandboxes, want 2 and 1", len(all), len(got))
	}
	for _, s := range got {
		if s.Network != "multus-cni-network" {
			t.Errorf("network %q counts, want the outer one", s.Network)
		}
	}
}
