// Package proxy answers pods as the EC2 instance metadata service (IMDS) does: tokens, the pod's own role
// credentials, and the metadata that pods are allowed to read.
//
// Its invariant: an answer with credentials is sent only to the pod that the source address identifies, for the Grant
// that was decided for that pod, and never after they expired. Whatever is not known is refused; no request is forwarded
// anywhere.
//
// It is the request path: it reads memory and does no I/O of its own. What is not known yet parks the request, for one
// budget in all, and is then answered 503. The requests of one source are limited, in number and in rate: what is too much
// waits, before a byte of it is read, and is closed without an answer if its turn does not come. Every response closes its
// connection, as IMDS does; that is what makes the takeover by another agent invisible, and it leaves one request head per
// connection to look at.
//
// Why it is exact to the byte: each deviation breaks some AWS SDK that is in use. A redirect for a missing slash is not
// followed by the Rust and Kotlin SDKs, a newline after the role's name is part of the name to the Common Runtime, a
// JSON error body is taken for credentials by old JavaScript SDKs.
package proxy
