package owner

import (
	"os"
	"testing"
)

// TestMain turns the process into what the tests start of it: an agent of the model, or a program of such an agent.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(agentEnv) != "":
		runAgent(os.Getenv(agentEnv))
	case os.Getenv(programEnv) != "":
		runProgram()
	default:
		os.Exit(m.Run())
	}
}
