// Package netevents turns the kernel's netlink notifications into one question: has something changed that matters?
// Its invariant: after the last change, the answer is always still to come. Notifications that the kernel dropped, for
// nobody read them in time, count as a change, and so does everything before the socket was open.
//
// What changes in bursts is reported once it has been quiet for a moment, and while it never is, every now and then.
package netevents
