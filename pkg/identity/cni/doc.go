// Package cni reads what the container runtime keeps of its CNI calls: one file per attachment, under
// /var/lib/cni/results, written before the first container of a pod starts. It tells which sandbox on this node is which
// pod's, with which addresses, behind which interface.
//
// The invariant: a pod UID has at most one Sandbox, the newest of that pod, and it has it only while that sandbox's
// network namespace exists. What a file does not say plainly is not guessed: the file is counted by its Verdict and
// tells nothing. Whether the pod is one of this node's is for the caller to judge.
//
// # Which file counts
//
// A sandbox has several files. The one of its default network is that of the interface eth0, as containerd and CRI-O
// name it for every pod. Not counted are: lo, which every sandbox has, under the pod's UID; and further networks (eth1,
// net1), whose addresses may overlap with those of others by design. If there is more than one for eth0, a plugin
// delegated to another one through the same cache; then the outer one counts, which is written last.
//
// # Which interface is the pod's
//
// A result lists all interfaces that the plugin made, those in the sandbox with the sandbox's path. The container's is
// the one that the addresses refer to, and its counterpart on the node stands right before it, without a sandbox: ptp,
// bridge, Amazon VPC CNI, Calico and Cilium all write it so. Other entries may be anything. Amazon VPC CNI appends one
// that is no link at all, and keeps a route table's number in "mac". So no name out of here is trusted to be a link,
// and a MAC counts only if it is one.
package cni
