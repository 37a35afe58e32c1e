// Package cache holds the Sessions of the Grants that pods on this node refer to, and keeps them warm: minted when
// a pod is scheduled, refreshed about half life, so that a request only ever reads memory. A Session is shared by pods
// exactly when their whole Grant is equal.
//
// What it promises, and where:
//   - A Session that has expired is never served (Cache.Get).
//   - A Grant has at most one mint under way, on the cache's own context: callers come and go without touching it, and
//     so do entries.
//   - While STS answers, a served Session of a Grant that AWS does not deny has at least Floor of its life left.
//   - A mint that fails delays the next mint of its own Grant and of no other (schedule.go).
//   - A wanted Grant is never evicted. The bound is on the released ones.
//
// A Grant is wanted while a pod refers to it. After the last Release it lingers: it is refreshed for Config.Linger more,
// behind everything that is wanted, so that the pod of an hourly CronJob finds its Session; then it is kept until that
// expires. Minting without a pod takes what the last pods left with the Minter, such as a ServiceAccount token
// (Preparer). After Revoke nothing lingers.
//
// With a Config.Store, Sessions outlive the process. One that was kept is served only after Want for exactly its Grant,
// that is, after somebody has decided anew that a pod has it (keep.go).
package cache
