// Package kubetest is a stand-in for the part of the Kubernetes API that a node agent uses: list and watch of pods,
// ServiceAccounts and Namespaces, whole or metadata only, TokenRequest, the writing of Events, the Node that the agent is on,
// and the reviews by which it finds out who it is and what it may. It allows what the RBAC objects it was given allow, and
// the node authorizer to who acts as a node; refuses what the ValidatingAdmissionPolicies it was given refuse; and refuses
// what it does not model: it never answers a request that it could not check.
//
// Options are decoded and validated by the API server's own code, k8s.io/apimachinery, and policies run on the API server's
// own engine, cel-go. Answers are JSON, which every client of ours accepts next to protobuf; request bodies may be either.
// Resource versions come from one counter, as with etcd, and history is bounded, so that clients meet 410 Gone.
//
// It opens no socket and starts no goroutine: [API] is an http.Handler. Faults can be switched on, and requests counted,
// while it serves.
package kubetest
