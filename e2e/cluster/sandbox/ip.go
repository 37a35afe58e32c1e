package sandbox

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
)

// IP configures the network that the caller is in: each line is what ip(8) would be given.
func IP(lines ...string) error { return ip(exec.Command("ip", "-batch", "-"), lines) }

func ip(cmd *exec.Cmd, lines []string) error {
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("configure network: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
