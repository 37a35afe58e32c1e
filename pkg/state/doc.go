// Package state keeps what an agent knows for the agent that comes after it, in a folder of the node's memory: Sessions,
// ServiceAccount tokens, the keys of IMDSv2 tokens, and the Grants of the pods that run.
//
// What it promises, and where:
//   - One writer. The agent that opened the folder last owns it; one that was there before notices at its next write,
//     under the same lock, and writes no more (owner.go).
//   - Nothing half-written is ever read. A file is complete before it gets its name (folder.go).
//   - A file system that is full stops no agent: what is there stays, and what is to be there is written later (Dir.Take,
//     decisions.go).
//   - What cannot be trusted is not used, and never stops an agent: content that is damaged, of another version, of
//     another user or readable by others is set aside with a warning (aside.go).
//   - Secrets are in files of mode 0600 in a folder of mode 0700 on a file system that is memory (Open), and in no error
//     and no log.
//   - Bounded in count and size, without what has expired.
//
// The folder decides nothing. That a pod may still have what is kept here is for its reader to find out.
//
// Memory file systems are written to swap where the node has any. Mount with noswap (Linux 6.4), or have no swap.
package state
