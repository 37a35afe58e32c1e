// Package node does what netlink does for the Redirect: the agent's address on lo, the routing-policy guard, and the
// flush of connections that were made before either. Its invariant: a packet for the metadata address that comes from
// anywhere but the node itself is refused by routing, and a packet for the agent's address never leaves the node,
// whatever becomes of the iptables rules and of the address.
//
// The way of a packet from a pod to the metadata address, with what package iptables contributes in brackets:
//
//	pod ──▶ [nat PREROUTING] ──▶ routing policy ────────────────────────────▶ [filter INPUT] ──▶ agent
//	        [to AGENT:PORT]       0  from all lookup local                ──▶   [redirected?]
//	                              1  to AGENT lookup local
//	                              2  to AGENT prohibit                    ──▶ refused: the address is gone
//	                              3  from AGENT to POD iif lo lookup N        (only to pods with tables of their own)
//	                              4  to METADATA dport 53 goto 8              (only with GuardExceptDNS)
//	                              5  iif lo to METADATA goto 8                the node itself
//	                              6  to METADATA prohibit                 ──▶ refused: the redirect is gone
//	                              8  nop
//	                              …  the node's own rules
//
// What is refused here is refused by an ICMP error, of which the kernel sends one address a few at once and then one
// in a second or two; a client that misses one is told at its next try. Nothing gets through meanwhile.
//
// DNAT comes before routing, so redirected packets never meet the metadata rules. Those of the agent's address stand
// where a CNI moved the lookup of table local behind its own rules (Amazon VPC CNI with security groups for pods in
// strict mode, Cilium); in that strict mode the way to a pod is in a table of the pod's own, and answers to it are led
// there. The node's own requests go on past the guard, and not to table main: its metadata route may be anywhere.
//
// The rules bear protocol "kernel", which keeps systemd-networkd from deleting them as foreign
// (networkd.conf(5), ManageForeignRoutingPolicyRules). Rules of that protocol with priorities 1 to 9 are ours.
//
// The same library tells where a source address lives (Locator), which is how a connection is traced to its pod, and has
// bridges keep each pod's MAC address behind its own port (Redirect.PinMAC).
package node
