// Package sandbox runs a cluster on one machine so that nothing of the machine changes, and nothing of the cluster
// stays.
//
//	the caller's process          waits, holds the lock, sweeps
//	  └ the sandbox               the same program again; its network is "outside": API server, AWS, metadata service
//	      ├ node1 = a Machine     container runtime, kubelet, pods
//	      └ node2 = a Machine
//
// The sandbox and each Machine in it have network, process, mount, IPC and host name namespaces of their own, with their
// own /run, and a Machine its own /var and its own namespace of control groups. The first process of each is killed by
// the kernel when the one above it ends, in whatever way, and a process namespace, its network and its mounts end with
// their first process. So after a SIGKILL nothing is left but empty control groups, which end with nobody. Whatever a
// machine's programs take for the root of a hierarchy is the machine's group, and all of these are below one of a fixed
// name, which the next sandbox removes. A lock, which the kernel releases as well, keeps two from running at once.
//
// Invariant: processes are ended by the handle of the namespace or the process that this package started, never by name.
package sandbox
