package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// program is one that is built from a module, by the package of its main.
type program struct{ name, pkg string }

// kubernetesPrograms are those of the module in folder kubernetes.
func kubernetesPrograms() []program {
	programs := []program{{"etcd", "go.etcd.io/etcd/server/v3"}}
	for _, name := range []string{
		"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
	} {
		programs = append(programs, program{name, "k8s.io/kubernetes/cmd/" + name})
	}
	return programs
}

// prepare fills the cache with all that needs the network or takes long.
func prepare(ctx context.Context, s settings, w io.Writer) error {
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return fmt.Errorf("create cache: %w", err)
	}
	if _, err := s.buildKubernetes(ctx, w); err != nil {
		return err
	}
	if _, err := s.buildBase(ctx, w); err != nil {
		return err
	}
	fmt.Fprintln(w, "== programs of pods and hosts")
	if err := run(s.command(ctx, s.root, "go", "mod", "download")); err != nil {
		return err
	}
	return errors.Join(
		run(s.build(ctx, s.root, s.client(), "./e2e/cluster/client", "-s -w")),
		run(s.build(ctx, s.root, s.agent(), "./cmd/agent", "-s -w")))
}

// client is the path of the program that pods run.
func (s settings) client() string { return filepath.Join(s.cache, "client") }

// kubernetesDir returns the folder with Kubernetes as the module in folder kubernetes says, whether or not it is there.
func (s settings) kubernetesDir() (string, error) {
	module := filepath.Join(s.root, "e2e/cluster/kubernetes")
	sum, err := digest("", filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum"))
	return filepath.Join(s.cache, "kubernetes", sum), err
}

// buildKubernetes builds what of Kubernetes is not there yet, and returns its folder.
func (s settings) buildKubernetes(ctx context.Context, w io.Writer) (string, error) {
	folder, err := s.kubernetesDir()
	if err != nil {
		return "", err
	}
	module := filepath.Join(s.root, "e2e/cluster/kubernetes")
	out, err := s.command(ctx, module, "go", "list", "-mod=readonly", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return "", fmt.Errorf("find version of Kubernetes: %w", err)
	}
	version := strings.TrimSpace(string(out))
	fmt.Fprintf(w, "== Kubernetes %s, in %s (a quarter of an hour the first time)\n", version, s.cache)
	if err := keepOnly(folder); err != nil {
		return "", err
	}
	for _, p := range kubernetesPrograms() {
		binary := filepath.Join(folder, p.name)
		if _, err := os.Stat(binary); err == nil {
			continue
		}
		began := time.Now()
		fmt.Fprintf(w, "   %s", p.name)
		// Under another name first: a build that was cut short must not pass for a whole one.
		unfinished := binary + ".unfinished"
		if err := run(s.build(ctx, module, unfinished, p.pkg, "-s -w "+stamp(version))); err != nil {
			fmt.Fprintln(w)
			return "", err
		}
		if err := os.Rename(unfinished, binary); err != nil {
			return "", fmt.Errorf("fill cache: %w", err)
		}
		fmt.Fprintf(w, ": built in %s\n", time.Since(began).Round(time.Second))
	}
	return folder, nil
}

// stamp returns the linker flags by which the programs of Kubernetes learn their version.
func stamp(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags, "-X", pkg+".gitVersion="+version, "-X", pkg+".gitMajor="+major, "-X", pkg+".gitMinor="+minor)
	}
	return strings.Join(flags, " ")
}

// basePackages are installed into the base image: what the Dockerfile would install otherwise.
const basePackages = "ca-certificates,iptables"

// baseSuite is the distribution of the base image, as in the Dockerfile.
const baseSuite = "bookworm"

// baseArchive returns the path of the base image's files, whether or not they are there.
func (s settings) baseArchive() (string, error) {
	sum, err := digest(baseSuite + basePackages)
	return filepath.Join(s.cache, "base", sum, "base.tar"), err
}

// buildBase assembles the base image's files from the distribution's packages, unless they are there.
func (s settings) buildBase(ctx context.Context, w io.Writer) (string, error) {
	archive, err := s.baseArchive()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	began := time.Now()
	fmt.Fprintf(w, "== base image: Debian %s with %s", baseSuite, basePackages)
	folder := filepath.Dir(archive)
	if err := errors.Join(os.RemoveAll(folder), keepOnly(folder)); err != nil { // a run that was killed may have left something
		return "", err
	}
	// In namespaces of its own, for it mounts things and runs the packages' programs. What a running container has no use
	// for goes.
	const script = `set -e
root=$(mktemp -d "$2.XXXXXX")
trap 'umount -R "$root/proc" "$root/sys" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include="$1" "$3" "$root" http://deb.debian.org/debian
umount -R "$root/proc" "$root/sys" 2>/dev/null || true
rm -rf "$root"/var/{cache/apt,lib/apt/lists,log}/* "$root"/usr/share/{doc,man,locale}
tar --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -C "$root" -cf "$2.unfinished" .
mv "$2.unfinished" "$2"`
	if err := run(s.command(ctx, "/", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"bash", "-c", script, "base", basePackages, archive, baseSuite)); err != nil {
		fmt.Fprintln(w)
		return "", err
	}
	fmt.Fprintf(w, ": %s\n", time.Since(began).Round(time.Second))
	return archive, nil
}

// keepOnly makes a folder, and removes those beside it, which earlier versions were built into.
func keepOnly(folder string) error {
	beside, err := filepath.Glob(filepath.Join(filepath.Dir(folder), "*"))
	if err != nil {
		return fmt.Errorf("clean cache: %w", err)
	}
	for _, path := range beside {
		if path == folder {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clean cache: %w", err)
		}
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("create cache: %w", err)
	}
	return nil
}

// digest identifies what something is made from: a text, and files.
func digest(text string, files ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, text)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read what is to be built: %w", err)
		}
		fmt.Fprintf(h, "%d\n%s", len(content), content)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// build returns a command that builds a static program.
func (s settings) build(ctx context.Context, module, binary, pkg, linker string) *exec.Cmd {
	cmd := s.command(ctx, module, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags="+linker, "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	return cmd
}

// command returns a command that is killed when this program ends, in whatever way.
func (s settings) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if !sandbox.Inside() { // a sandbox's processes end with it anyway
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	return cmd
}

// run runs a command and returns what it said last if it failed.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		const most = 2000
		out = bytes.TrimSpace(out)
		if len(out) > most {
			out = out[len(out)-most:]
		}
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}
