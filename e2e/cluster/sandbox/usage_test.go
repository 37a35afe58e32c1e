package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func TestGroupOf(t *testing.T) {
	const v1 = "12:cpu,cpuacct:/k8s.io/abc\n4:memory:/k8s.io/abc\n0::/\n"
	for name, c := range map[string]struct {
		text, controller, want string
	}{
		"version_1":         {v1, "memory", "/sys/fs/cgroup/memory/k8s.io/abc"},
		"version_1_of_two":  {v1, "cpuacct", "/sys/fs/cgroup/cpuacct/k8s.io/abc"},
		"version_2":         {"0::/k8s.io/a:c\n", "", "/sys/fs/cgroup/k8s.io/a:c"},
		"version_2_is_none": {"0::/k8s.io/abc\n", "memory", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := groupOf(c.text, c.controller); got != c.want || ok != (c.want != "") {
				t.Errorf("got %q, %t, want %q", got, ok, c.want)
			}
		})
	}
}

func TestNumber(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	for name, c := range map[string]struct {
		text, key string
		want      int64
		ok        bool
	}{
		"one":      {"4096\n", "", 4096, true},
		"several":  {"cache 1\ninactive_file 2\n", "inactive_file", 2, true},
		"no_such":  {"inactive_file 2\n", "total_inactive_file", 0, false},
		"no_limit": {"max\n", "", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := number[int64](nil, file, c.key); got != c.want || (err == nil) != c.ok {
				t.Errorf("got %d, %v, want %d", got, err, c.want)
			}
		})
	}
}
