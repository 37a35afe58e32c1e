package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// Images of the cluster, as pods name them. They are in no registry.
const (
	agentRepo   = "localhost/podrole"
	agentImage  = agentRepo + ":dev"
	clientImage = "localhost/client:dev"
	pauseImage  = "localhost/pause:dev"
)

// agentVersion is what the agent's image is told that it is.
const agentVersion = "v0.0.0-e2e"

type images struct{ agent, client, pause string }

// imagery builds images: buildah without any privilege but the sandbox's own root, and without a network.
type imagery struct {
	settings
}

// buildImages builds the image of the project's Dockerfile and those of the pods' program.
func (s settings) buildImages(ctx context.Context, w io.Writer) (images, error) {
	began := time.Now()
	fmt.Fprintln(w, "== images")
	i := imagery{settings: s}
	base, err := s.baseArchive()
	if err != nil {
		return images{}, err
	}
	// What the Dockerfile finds in images of Docker's is made from the base and from what is on this machine: its Go is
	// mounted for the time of the build.
	if err := i.build(ctx, "base", filepath.Dir(base), "FROM scratch\nADD base.tar /\n"); err != nil {
		return images{}, err
	}
	const goImage = "FROM localhost/base\n" +
		"ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin GOTOOLCHAIN=local GOPROXY=off HOME=/root\n"
	if err := i.build(ctx, "go", sandbox.Dir, goImage); err != nil {
		return images{}, err
	}
	volumes, err := i.goVolumes(ctx)
	if err != nil {
		return images{}, err
	}
	dockerfile, err := os.ReadFile(filepath.Join(s.root, "Dockerfile"))
	if err != nil {
		return images{}, fmt.Errorf("read Dockerfile: %w", err)
	}
	args := append(volumes, "--build-arg=BUILD_IMAGE=localhost/go", "--build-arg=BASE_IMAGE=localhost/base",
		"--build-arg=VERSION="+agentVersion)
	if err := i.build(ctx, "podrole", s.root, string(dockerfile), args...); err != nil {
		return images{}, err
	}
	for _, name := range []string{"client", "pause"} {
		text := fmt.Sprintf("FROM scratch\nCOPY client /client\nENTRYPOINT [\"/client\"]\nCMD [%q]\n", name)
		if err := i.build(ctx, name, s.cache, text); err != nil {
			return images{}, err
		}
	}
	var built images
	for _, image := range []struct {
		name, as string
		archive  *string
	}{
		{"podrole", agentImage, &built.agent}, {"client", clientImage, &built.client}, {"pause", pauseImage, &built.pause},
	} {
		*image.archive = filepath.Join(sandbox.Dir, image.name+".tar")
		push := i.buildah(ctx, "push", "localhost/"+image.name, "docker-archive:"+*image.archive+":"+image.as)
		if err := run(push); err != nil {
			return images{}, err
		}
	}
	fmt.Fprintf(w, "   built in %s\n", time.Since(began).Round(time.Second))
	return built, nil
}

// build builds localhost/NAME from the text of a Dockerfile and a folder.
func (i imagery) build(ctx context.Context, name, folder, text string, args ...string) error {
	file := filepath.Join(sandbox.Dir, name+".Dockerfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write Dockerfile: %w", err)
	}
	args = append([]string{
		"bud", "--layers", "--pull-never", "--network=host", "--tag=localhost/" + name, "--file=" + file,
	}, args...)
	if err := run(i.buildah(ctx, append(args, folder)...)); err != nil {
		return fmt.Errorf("build image %s: %w", name, err)
	}
	return nil
}

func (i imagery) buildah(ctx context.Context, args ...string) *exec.Cmd {
	cmd := i.command(ctx, "/", "buildah", append([]string{
		"--root=" + filepath.Join(i.cache, "images"), "--runroot=" + filepath.Join(sandbox.Dir, "buildah"),
		"--storage-driver=overlay",
	}, args...)...)
	// An isolation that needs no container runtime.
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot")
	return cmd
}

// goVolumes mounts this machine's Go, its modules and what it has compiled.
func (i imagery) goVolumes(ctx context.Context) ([]string, error) {
	out, err := i.command(ctx, i.root, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("ask for Go's folders: %w", err)
	}
	dirs := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(dirs) != 3 {
		return nil, fmt.Errorf("ask for Go's folders: got %q", dirs)
	}
	return []string{
		"--volume=" + dirs[0] + ":/usr/local/go:ro",
		"--volume=" + dirs[1] + ":/root/go/pkg/mod",
		"--volume=" + dirs[2] + ":/root/.cache/go-build",
	}, nil
}
