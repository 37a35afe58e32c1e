// Package sts turns a Grant into credentials: sts:AssumeRoleWithWebIdentity with a ServiceAccount token, or
// sts:AssumeRole with the agent's own credentials, always at regional endpoints: the first one
// that answers. It is the only package that
// calls AWS for a pod. Each call is one attempt sequence bounded by its context; retrying later, and when, is the
// business of package cache.
package sts
