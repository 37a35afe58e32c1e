// Package identity knows which pod is calling: it maps the source address of a connection to a Workload, and follows
// what the decision about that Workload is made from.
//
// It never guesses. A Workload is known from the moment its pod is scheduled to this node; an address identifies it only
// while exactly one live pod claims that address; and the annotations of pod, ServiceAccount and Namespace are passed
// on only when all three have been read. Until then the answer is "unknown", which is not "none": callers park.
//
// Namespaces and their ServiceAccounts are watched, metadata only, as long as a pod of theirs is on this node, so that
// the cost of an agent does not grow with the cluster.
package identity
