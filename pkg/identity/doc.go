// Package identity knows which pod is calling: it maps the source address of a connection to a Workload, and follows
// what the decision about that Workload is made from.
//
// It never guesses. A Workload is known from the moment its pod is scheduled to this node; a connection is its own when two
// witnesses agree: the CNI's result (without one, the API) on who has the address or the interface, and the kernel on
// where it routes the source; and the annotations of pod, ServiceAccount and Namespace are passed on only when all
// three have been read. Until then the answer is "unknown", which is not "none": callers park.
//
// Namespaces and their ServiceAccounts are watched, metadata only, as long as a pod of theirs is on this node, so that
// the cost of an agent does not grow with the cluster.
package identity
