package cni

import "fmt"

// Verdict says what became of a result file. It is a label value of metrics.
type Verdict string

// The verdicts. Only Counted makes a pod known.
const (
	// Counted: it tells of the sandbox that counts for its pod.
	Counted Verdict = "counted"
	// Superseded: another sandbox or result took its place.
	Superseded Verdict = "superseded"
	// Stale: the sandbox is gone, the file stayed, as after a crash or a reboot.
	Stale Verdict = "stale"
	// Loopback: the result of the loopback plugin. Every sandbox has one.
	Loopback Verdict = "loopback"
	// Secondary: not the sandbox's default network.
	Secondary Verdict = "secondary"
	// NoPodUID: the runtime did not say which pod it is.
	NoPodUID Verdict = "no_pod_uid"
	// NoNetNS: there is no path that lives and dies with the sandbox.
	NoNetNS Verdict = "no_netns"
	// UnknownFormat: JSON, but not a cached result of the known kind.
	UnknownFormat Verdict = "unknown_format"
	// Corrupt: unreadable, or not written to its end yet.
	Corrupt Verdict = "corrupt"
)

// ParseError says why a file tells of no sandbox.
type ParseError struct {
	File    string
	Verdict Verdict // one of Loopback, Secondary, NoPodUID, NoNetNS, UnknownFormat, Corrupt
	Err     error   // the cause; may be nil
}

// Error implements error.
func (e *ParseError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("read CNI result %s: %s", e.File, e.Verdict)
	}
	return fmt.Sprintf("read CNI result %s: %s: %v", e.File, e.Verdict, e.Err)
}

// Unwrap returns the cause.
func (e *ParseError) Unwrap() error { return e.Err }

// Verdicts returns all of them.
func Verdicts() []Verdict {
	return []Verdict{Counted, Superseded, Stale, Loopback, Secondary, NoPodUID, NoNetNS, UnknownFormat, Corrupt}
}
