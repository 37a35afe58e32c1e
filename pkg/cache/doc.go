// Package cache holds the Sessions of the Grants that pods on this node refer to, and keeps them warm: minted when
// a pod is scheduled, refreshed at half life, so that a request only ever reads memory. A Session is shared by pods
// exactly when their whole Grant is equal.
//
// What it promises, and where:
//   - A Session that has expired is never served (Cache.Get).
//   - A Grant has at most one mint under way, on the cache's own context: callers come and go without touching it.
//   - While STS answers, a served Session of a Grant that AWS does not deny has at least Floor of its life left.
//   - A mint that fails delays the next mint of its own Grant and of no other (schedule.go).
//   - A wanted Grant is never evicted. The bound is on the released ones.
//
// A Grant is wanted while a pod refers to it. After the last Release its Session is kept for Config.Linger or until
// it expires, whichever is first, so that a pod that comes back finds it; it is not refreshed meanwhile. An hourly
// CronJob therefore starts cold: refreshing for a ServiceAccount that has no pod takes a ServiceAccount token that
// outlived its pod, and belongs here once such tokens are persisted.
package cache
