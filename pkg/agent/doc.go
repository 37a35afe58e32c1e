// Package agent wires the others together and runs them: it is the only one that knows every package. Three flows
// are visible in it:
//
//	a request:  pod ── iptables ──▶ proxy ─▶ identity.Directory ─▶ assignments.Decide ─▶ cache.Get ─▶ bytes
//	a sandbox:  CNI result ─▶ cni.Watcher ─▶ pins ─▶ identity.Directory
//	a pod:      scheduled here ─▶ identity.Directory ─▶ assignments.Known ─▶ cache.Want ─▶ sts.Minter ─▶ warm
//
// The order of the start is closed by default: guard and address first, then identity, decisions and sessions, and only
// when those are there the rules that lead pods here. The order of the end is the reverse, except that guard and rules
// stay: pods are refused, never let through, until the next agent is up.
package agent
