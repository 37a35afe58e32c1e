// Package nodebox builds a Kubernetes node in a box: network namespaces, veth pairs and routes in which the real
// agent, real iptables and real clients run, on one machine, without a cluster. Tests, the demo and the benchmarks
// all stand on it. It needs Linux and root.
//
//	pod eth0 ── host interface ┐
//	pod eth0 ── host interface ┤ node ── uplink ── outside: 169.254.169.254, AWS endpoints
//	pod eth0 ── host interface ┘
//
// The node's metadata service stands in a namespace of its own behind the node's uplink, as on EC2: an address that
// is local to the node would be found in the local routing table before any routing policy, and no guard could be
// tested. Nothing masquerades on the way there and everything has a route back, so a pod that gets past the redirect
// succeeds under its own address, and Box.Leaks reports it.
//
// Invariants: the namespace that the process runs in is never changed, not even for a moment: every link is created
// inside the namespaces of the box. All that a box makes carries the owner's process ID and start time, and goes with
// Box.Close; what a killed owner left goes with the next New or Sweep. Owners are told apart by process ID, so
// processes that share /run/netns must share a PID namespace.
package nodebox
