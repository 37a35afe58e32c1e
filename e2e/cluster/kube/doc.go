// Package kube makes a Kubernetes cluster out of the machines of a sandbox: etcd, API server, controller manager and
// scheduler on the outside of the nodes, and on each node containerd, kubelet and kube-proxy, with pods in network
// namespaces of their own behind the ptp CNI plugin. Everything authenticates by certificate, the API server authorizes by
// Node and RBAC with NodeRestriction, and publishes its ServiceAccount issuer for all to read, as an IAM OIDC provider
// needs it.
//
//	169.254.169.254, AWS ┐
//	etcd, API server     ├ outside 10.0.0.1 ── fabric ── 10.0.0.11 node1 ── pods 10.244.1.0/24
//	controllers          ┘                        └───── 10.0.0.12 node2 ── pods 10.244.2.0/24
//
// Nothing masquerades on the way to the outside, which has routes back: a pod that gets past its node's redirect is
// answered, and seen under its own address.
package kube
