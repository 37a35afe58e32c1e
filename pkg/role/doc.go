// Package role decides which IAM role a pod may use: a Workload and the annotations of its pod, ServiceAccount and
// Namespace go in, a Grant or a Denial comes out. Everything here is a pure function of its arguments: no I/O, no
// clock, no state, so that every rule can be read and tested on its own.
package role
