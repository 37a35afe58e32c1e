// Package metadata holds what a pod may read of its node's instance metadata. A Snapshot contains the allowed
// leaves and the listings that lead to them, and nothing else: a path that is not in it does not exist for a pod,
// so a category that AWS adds tomorrow is refused until somebody allows it here. A Snapshot is built before it is
// served; looking something up in it is one map access. Nothing that a pod sends is ever sent upstream.
package metadata
