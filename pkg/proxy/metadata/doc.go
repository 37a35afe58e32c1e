// Package metadata holds what a pod may read of its node's instance metadata: leaves that every pod may read, leaves that
// a [Pattern] allows to all pods or to one, and the listings that lead to them. A path that is none of these does not
// exist for a pod, so a category that AWS adds tomorrow is refused until somebody allows it; and no Pattern allows
// credentials, or anything else that makes one the node.
//
// A [Store] fetches from the node's own metadata service, and pods are answered from its memory. What goes upstream is a
// path that is allowed, and nothing else that a pod sends.
package metadata
