package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownMounts cuts the mounts of a new mount namespace off from those outside, gives it the /proc of its process
// namespace, and makes read-only what belongs to the whole machine.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Settings of networks, which are in /proc/sys/net, belong to the network namespace; these belong to the machine.
	for _, dir := range []string{"/proc/sys/kernel", "/proc/sys/vm"} {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", dir, err)
		}
	}
	return nil
}

func mountTmpfs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount memory at %s: %w", dir, err)
	}
	return nil
}

// machineMounts gives a machine a /run and a /var that nothing outside sees, and its own control groups in place of all.
// What /var holds outside can be read; the runtime and the kubelet begin with nothing, in memory, for a container's root
// cannot lie on an overlay again.
func machineMounts(machine string) error {
	if err := ownMounts(); err != nil {
		return err
	}
	if err := mountCgroups(machine); err != nil {
		return err
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/var/upper", "/run/var/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create %s: %w", dir, err)
		}
	}
	options := "lowerdir=/var,upperdir=/run/var/upper,workdir=/run/var/work"
	if err := unix.Mount("overlay", "/var", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount /var: %w", err)
	}
	for _, dir := range []string{
		"/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers",
	} {
		if err := mountTmpfs(dir); err != nil {
			return err
		}
	}
	if err := pretendSettings(); err != nil {
		return err
	}
	// The kubelet expects what it mounts to be seen by the runtime, and the other way round, in any mount namespace of
	// theirs.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// pretendSettings shows a kubelet the settings that it would otherwise make for the whole machine, and does not start
// without (setupKernelTunables in k8s.io/kubernetes/pkg/kubelet/cm).
func pretendSettings() error {
	for setting, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join("/run/settings", setting)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("create folder: %w", err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o444); err != nil {
			return fmt.Errorf("write setting: %w", err)
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", setting), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show setting %s: %w", setting, err)
		}
	}
	return nil
}
