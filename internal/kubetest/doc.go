// Package kubetest is a stand-in for the part of the Kubernetes API that a node agent uses: list and watch of pods,
// ServiceAccounts and Namespaces, whole or metadata only, TokenRequest, and the writing of Events. It allows what the
// RBAC objects it was given allow and nothing else, and refuses what it does not model: it never answers a request that it
// could not check.
//
// Options are decoded and validated by the API server's own code, k8s.io/apimachinery. Answers are JSON, which every
// client of ours accepts next to protobuf; request bodies may be either. Resource versions come from one counter, as
// with etcd, and history is bounded, so that clients meet 410 Gone.
//
// It opens no socket and starts no goroutine: [API] is an http.Handler. Faults can be switched on, and requests counted,
// while it serves.
package kubetest
