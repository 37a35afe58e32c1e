// Package owner settles which of the agents on a node owns the Redirect, that is, which may lead pods to its own port.
// During a rolling update two run at once, and each would take the other's rules for damage and repair them.
//
// An agent claims the Redirect with a named pipe, in a folder that all agents of the node share, and holds it open. The
// kernel hangs the pipe up when the process is gone, however it went, and in whatever container it was. The owner is
// the living claim of the highest generation. Nothing else is recorded, so nothing can be half written, or say that the
// dead own. What holds at every moment, wherever an agent is killed or stopped:
//
//   - One at a time. Rules are changed under a lock on the folder, by an agent that has found itself the owner under
//     that same lock. An agent killed in the middle of a change leaves the lock to the programs that it had started.
//   - A stale agent cannot take back. It claims once, and its claim is below a newer one for as long as that lives. An
//     agent that is stopped (SIGSTOP, a frozen cgroup) lives.
//   - Never none. A claim counts from before the change that comes with it. If the change fails, or the agent dies in
//     it, the claim is void: whoever owned before owns again, and finds the rules in need of repair. It learns of every
//     claim that was above its own, also of one that was void at once. The same when an owner dies later, or resigns:
//     the pipe tells the others at once.
//
// An agent that has not claimed yet holds a pipe as well, which decides nothing: it is for whoever must know whether any
// agent is there at all.
//
// In the folder, claim-GENERATION-ID and agent-ID are pipes that somebody holds or held, and the lock is the flock(2) of
// the folder itself. Agents of different versions meet there, so this cannot be changed.
package owner
