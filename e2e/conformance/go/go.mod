// The clients in Go are one module with many locks: each client is built with -modfile=locks/CLIENT.mod, which pins the
// SDK that it is about. This file marks the root and requires nothing.
module podrole.io/conformance

go 1.26.0
