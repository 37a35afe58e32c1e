// The S3 client of MinIO, which restic and many other programs are built on. It has its own reader of the metadata
// service, and falls back to nothing.
package main

import (
	"runtime/debug"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"podrole.io/conformance/talk"
)

func main() {
	role := credentials.NewIAM("")
	talk.Client{
		Version: version("github.com/minio/minio-go/v7"),
		Identity: func() (string, string, error) {
			value, err := role.Get() // what came after it is unknown to older releases
			return value.AccessKeyID, "", err
		},
		Forget: role.Expire,
	}.Run()
}

// version reads off the binary which release of a module is in it.
func version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	return ""
}
