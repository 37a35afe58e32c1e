package main

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/testbed"
)

const (
	memoryRepeats    = 5
	podsOnNode       = 100
	podNamespaces    = 10
	largeNamespaces  = 1000
	largeAccounts    = 50_000
	accountsPerSpace = largeAccounts / largeNamespaces
)

// memory measures the agent's memory with a hundred pods on its node, in a cluster that has nothing else, and in one with
// 50 000 ServiceAccounts in 1 000 Namespaces.
func memory(ctx context.Context, agent string) ([]figure, error) {
	var small, growth []float64
	for range memoryRepeats {
		alone, err := residentSet(ctx, agent, podNamespaces, podsOnNode/podNamespaces)
		if err != nil {
			return nil, err
		}
		among, err := residentSet(ctx, agent, largeNamespaces, accountsPerSpace)
		if err != nil {
			return nil, err
		}
		small = append(small, float64(alone)/(1<<20))
		growth = append(growth, float64(among)/float64(alone))
	}
	return []figure{newFigure("rss_mib_100_pods", "MiB", small), newFigure("rss_growth_50k_ratio", "ratio", growth)}, nil
}

// residentSet returns the agent's memory, in bytes, once all pods' sessions are minted.
func residentSet(ctx context.Context, agent string, namespaces, accounts int) (_ int64, err error) {
	bed, err := testbed.New(ctx, testbed.Config{Agent: agent})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	cluster, err := bed.NewCluster(ctx, testbed.ClusterConfig{Authority: testbed.DirectTokens("manifests")})
	if err != nil {
		return 0, err
	}
	for n := range namespaces {
		namespace := fmt.Sprintf("namespace-%d", n)
		if err := cluster.AddNamespace(namespace); err != nil {
			return 0, err
		}
		for a := range accounts {
			err := cluster.API.Put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: fmt.Sprintf("account-%d", a),
			}})
			if err != nil {
				return 0, err
			}
		}
	}
	for p := range podsOnNode {
		namespace, account := fmt.Sprintf("namespace-%d", p%podNamespaces), fmt.Sprintf("account-%d", p/podNamespaces)
		role, err := cluster.AddRole(fmt.Sprintf("role-%d", p), namespace, account)
		if err != nil {
			return 0, err
		}
		if err := cluster.AddServiceAccount(namespace, account, role); err != nil {
			return 0, err
		}
		if _, err := cluster.AddPod(namespace, fmt.Sprintf("pod-%d", p), account); err != nil {
			return 0, err
		}
	}
	a, err := bed.StartAgent(ctx, "--sts-rate=100")
	if err != nil {
		return 0, err
	}
	return a.RSS()
}
