// Package kubefiles stands in for an API server where there is none: it serves the Pods, ServiceAccounts and Namespaces
// that the YAML files of a folder declare to client-go's informers. The invariant: what is served is always one
// consistent state of the folder, in which no object is declared twice and every file is in the last state in which it
// could be read. A bad edit changes nothing but the log.
//
// # Files
//
// All regular files directly in the folder whose names end in .yaml, .yml or .json, other than hidden ones. A file
// holds any number of documents; a document is an object or a List of objects, as kubectl prints them. They are read
// strictly: an unknown field is an error. Kinds other than Pod, ServiceAccount and Namespace are ignored, with one
// warning each.
//
// A file should be replaced by renaming, as editors and the kubelet do. One that is written in place is read when it
// has been left alone for a moment, and half a file may be a good file.
//
// # What is added to the objects
//
//   - A namespace: "default".
//   - A Pod's spec.serviceAccountName: "default".
//   - A Pod's spec.nodeName: in a folder there is no scheduler, so a pod without one belongs to the node that asks.
//   - metadata.uid: derived from kind, namespace and name, for Pods from the ServiceAccount too, so that it survives
//     restarts. To make a pod a new one under its old name, give it a metadata.uid.
//   - status.podIP and status.podIPs: each from the other.
//
// A Pod whose UID or ServiceAccount changes is a different pod: it is deleted and added, as neither can change in a
// cluster.
//
// # What exists without being declared
//
// As in a cluster: the namespace "default", every namespace that an object is in, and the ServiceAccount "default" of
// each of them. A file may declare them to give them annotations. Other ServiceAccounts exist only if declared; a Pod
// that refers to one that does not is served, with a warning, like a Pod whose ServiceAccount has been deleted.
package kubefiles
