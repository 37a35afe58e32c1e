package nodebox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// ownerEnv turns the test binary into an owner that builds a box, says so and waits to be killed.
const ownerEnv = "NODEBOX_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		if err := ownBox(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func ownBox() error {
	b, err := New(context.Background(), Config{})
	if err != nil {
		return err
	}
	p, err := b.AddPod(PodConfig{Namespace: "team", Name: "app"})
	if err != nil {
		return err
	}
	started := exec.Command("sleep", "3600")
	if err := p.Start(started); err != nil {
		return err
	}
	// In a session of its own and without a parent: nothing but the namespace ties it to the box.
	orphan := b.Node.Command(context.Background(), "sh", "-c", "setsid sleep 3600 >/dev/null 2>&1 & echo $!")
	pid, err := orphan.Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s %d %s", b.name, started.Process.Pid, pid)
	select {}
}
