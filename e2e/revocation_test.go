package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/testbed"
)

const (
	roleKey = "podrole.io/role-arn"
	irsaKey = "eks.amazonaws.com/role-arn"
)

// keepingStage is a clusterStage whose agents keep their sessions in a folder.
type keepingStage struct {
	*clusterStage
	sessions string // the part of the folder that holds them
}

func newKeepingStage(t *testing.T) *keepingStage {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	s := &clusterStage{bed: newBed(t, testbed.Config{Flags: []string{"--state-dir=" + state, "--state-dir-on-disk"}})}
	var err error
	s.cluster, err = s.bed.NewCluster(t.Context(), testbed.ClusterConfig{Authority: testbed.DirectTokens("../manifests")})
	s.must(t, err)
	s.must(t, s.cluster.AddNamespace("shop"))
	return &keepingStage{clusterStage: s, sessions: filepath.Join(state, "sessions")}
}

// kept reports whether a session is in the folder, by its access key ID or its role.
func (s *keepingStage) kept(t *testing.T, what string) bool {
	t.Helper()
	entries, err := os.ReadDir(s.sessions)
	s.must(t, err)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(s.sessions, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		s.must(t, err)
		if strings.Contains(string(text), what) {
			return true
		}
	}
	return false
}

// annotate replaces the annotations of a ServiceAccount.
func (s *keepingStage) annotate(t *testing.T, account string, annotations map[string]string) {
	t.Helper()
	s.must(t, s.cluster.API.Put(&corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: account, Annotations: annotations},
	}))
}

// rotate waits until count more sessions of the role have been minted.
func (s *keepingStage) rotate(t *testing.T, role string, count int) {
	t.Helper()
	from := s.minted(role)
	eventually(t, fmt.Sprintf("%d rotations", count), func() string {
		if n := s.minted(role) - from; n < count {
			return fmt.Sprintf("%d of them", n)
		}
		return ""
	})
}

// TestRevocation: a role that is taken away is not served a second later, whatever else could be read, and its session
// is gone, also from the folder that the next agent would find it in.
func TestRevocation(t *testing.T) {
	s := newKeepingStage(t)
	bystanders := s.addAccount(t, "bystander")
	bystander := s.addPod(t, "bystander-0", "bystander")
	s.start(t)
	for name, annotations := range map[string]map[string]string{
		"removed":             nil,
		"emptied":             {roleKey: ""},
		"emptied_beside_irsa": {roleKey: "", irsaKey: "arn:aws:iam::" + testbed.Account + ":role/emptied_beside_irsa"},
	} {
		t.Run(name, func(t *testing.T) {
			role := s.addAccount(t, name)
			pod := s.addPod(t, strings.ReplaceAll(name, "_", "-")+"-0", name)
			s.waitServed(t, pod, name, role)
			before, problem := s.served(get(t, pod, credentials+name), role)
			if problem != "" {
				t.Fatal(problem)
			}
			eventually(t, "session kept", func() string {
				if !s.kept(t, before.AccessKeyID) {
					return "it is not in the folder"
				}
				return ""
			})

			s.annotate(t, name, annotations)
			began := time.Now()
			for got := get(t, pod, credentials+name); got.status != http.StatusNotFound; got = get(t, pod, credentials+name) {
				if _, problem := s.served(got, role); problem != "" {
					t.Fatalf("before the role is gone: %s", problem)
				}
				if time.Since(began) > time.Second {
					t.Fatalf("served %s after the role was taken away", time.Since(began))
				}
			}
			t.Logf("taken away after %s", time.Since(began))
			eventually(t, "session dropped", func() string {
				if s.kept(t, before.AccessKeyID) {
					return "it is still in the folder"
				}
				return ""
			})
			for _, path := range []string{credentials, credentials + name} {
				if got := get(t, pod, path); got.status != http.StatusNotFound {
					t.Errorf("%s without a role: got %s, want 404", path, got)
				}
			}

			s.annotate(t, name, map[string]string{roleKey: role})
			s.waitServed(t, pod, name, role)
			if after, _ := s.served(get(t, pod, credentials+name), role); after.AccessKeyID == before.AccessKeyID {
				t.Error("the role's return brought the session back that was to be dropped")
			}
			if n := s.minted(role); n != 2 {
				t.Errorf("%d sessions, want one before and one after", n)
			}
		})
	}
	if _, problem := s.served(get(t, bystander, credentials+"bystander"), bystanders); problem != "" {
		t.Errorf("another pod: %s", problem)
	}
	if n := s.minted(bystanders); n != 1 {
		t.Errorf("%d sessions of another pod, want 1", n)
	}
}

// TestMalformedEditLocksNobodyOut: pods that have their role keep it, sessions go on rotating and the agent says so;
// new pods are refused until the edit is repaired.
func TestMalformedEditLocksNobodyOut(t *testing.T) {
	s := newKeepingStage(t)
	s.bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return 4 * time.Second })
	role := s.addAccount(t, "orders")
	pod := s.addPod(t, "orders-0", "orders")
	agent := s.start(t)
	s.waitServed(t, pod, "orders", role)

	s.annotate(t, "orders", map[string]string{roleKey: "arn:aws:iam::role/orders"})
	eventually(t, "the edit noticed", func() string {
		if !strings.Contains(agent.Log(), "pod keeps its role in spite of an edit that cannot be read") {
			return "the log does not say so"
		}
		return ""
	})
	metrics, err := agent.Metrics(t.Context())
	s.must(t, err)
	if !strings.Contains(metrics, "\npodrole_pods_kept 1\n") {
		t.Error("the pod is not counted as one that keeps its role")
	}
	newcomer := s.addPod(t, "orders-1", "orders")
	eventually(t, "the new pod refused", func() string {
		got := get(t, newcomer, credentials+"orders")
		if got.status == http.StatusOK {
			t.Fatalf("a new pod: got %s", got)
		}
		if got.status != http.StatusNotFound {
			return got.String() // not decided on yet
		}
		return ""
	})
	from := s.minted(role)
	eventually(t, "two rotations", func() string {
		if _, problem := s.served(get(t, pod, credentials+"orders"), role); problem != "" {
			t.Fatalf("the pod that runs: %s", problem)
		}
		if n := s.minted(role) - from; n < 2 {
			return fmt.Sprintf("%d of them", n)
		}
		return ""
	})

	s.annotate(t, "orders", map[string]string{roleKey: role})
	s.waitServed(t, newcomer, "orders", role)
	if _, problem := s.served(get(t, pod, credentials+"orders"), role); problem != "" {
		t.Error(problem)
	}
}

// TestDeletedPodEndsRenewals: the session of a pod that is gone lingers for the next one, for as long as it lives, and
// is then no longer renewed.
func TestDeletedPodEndsRenewals(t *testing.T) {
	s := newKeepingStage(t)
	s.bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return 4 * time.Second })
	gone, stays := s.addAccount(t, "gone"), s.addAccount(t, "stays")
	pod := s.addPod(t, "gone-0", "gone")
	s.addPod(t, "stays-0", "stays")
	s.start(t)
	s.waitServed(t, pod, "gone", gone)

	s.must(t, pod.Remove())
	s.must(t, s.cluster.API.Delete("pods", "shop", "gone-0"))
	// A session is renewed about half its life: the other pod's are the clock.
	s.rotate(t, stays, 4)
	ended := s.minted(gone)
	s.rotate(t, stays, 3)
	if n := s.minted(gone); n != ended {
		t.Errorf("%d sessions for a pod that is gone, %d of them when its last one had ended", n, ended)
	}
}
