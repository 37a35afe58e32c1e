// Package iptables keeps the nat and filter rules that bring pods' metadata requests to the agent, and let nothing
// else through. The rules are data: what they should be is a pure function of [Rules], what they are is read with
// iptables-save, and whatever differs is put right in one iptables-restore transaction per table. It is the only
// package that runs other programs.
//
// The way of a packet from a pod to the metadata address, with what package node contributes in brackets:
//
//	pod ──▶ nat PREROUTING ──▶ routing ─────────▶ filter INPUT ──────────▶ agent
//	        PODROLE-PREROUTING  [guard: local      PODROLE-INPUT
//	        tcp/80 becomes      or prohibited]     redirected: on to the node's own rules
//	        AGENT:PORT            │                anything else for AGENT: rejected
//	                              │
//	                              └─▶ filter FORWARD ──────────────────▶ nowhere
//	                                  PODROLE-FORWARD
//	                                  what was not redirected, or lost its address: rejected
//
// What holds, whatever else is on the node:
//
//   - Closed first. filter comes before nat in every transaction and after it in every removal, so that the
//     redirect never stands without its guard. Package node's guard comes before both.
//   - No rule that could take our packets elsewhere stands before ours. That is weaker than "ours are first", on
//     purpose: Calico and kube-router insist on being first too, and two tools that both insist never come to rest.
//   - Rules match on destination, never on interface names: those differ from one CNI to the next.
//   - Guard chains return or reject. They never accept, for that would skip the node's and the CNI's own policy.
//   - Only chains whose name begins with PODROLE-, and jumps to them, are ever touched. Rules by which other tools
//     redirect the same addresses are named (Leftovers), not removed.
//
// What another program changes is heard of from the kernel and repaired at once (Redirect.Watch, Redirect.Heal), in a
// few tens of milliseconds also among thousands of rules. What that leaves out, a look at everything finds
// (Redirect.Ensure).
//
// Rules outlive the agent: without one, pods are refused.
package iptables
