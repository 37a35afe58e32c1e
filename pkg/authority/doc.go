// Package authority verifies, with the API server, that an agent may do what it was told it may, and no more.
//
// RBAC cannot say "tokens for AWS of the pods of this node": what bounds an agent's rights are admission policies, which
// name the agent by its namespace, and which fail open when they are not there, name another, or are not bound. None of
// that shows while all goes well. So an agent asks for what it must be refused, and does not serve by an authority that
// grants it.
package authority
