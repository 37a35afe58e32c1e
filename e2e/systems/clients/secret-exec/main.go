// Secret-exec becomes a command that has a secret of AWS Secrets Manager in its environment.
//
//	secret-exec VARIABLE=SECRET COMMAND [ARGUMENT...]
//
// Region and credentials are the SDK's to find.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

func main() {
	err := become(context.Background(), os.Args[1:]) // does not return when all is well
	fmt.Fprintln(os.Stderr, "secret-exec:", err)
	os.Exit(1)
}

func become(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("want VARIABLE=SECRET and a command")
	}
	variable, secret, ok := strings.Cut(args[0], "=")
	if !ok || variable == "" || secret == "" {
		return fmt.Errorf("want VARIABLE=SECRET, got %q", args[0])
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
	if err != nil {
		return fmt.Errorf("load configuration: %w", err)
	}
	out, err := secretsmanager.NewFromConfig(cfg).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &secret})
	if err != nil {
		return err
	}
	if out.SecretString == nil {
		return fmt.Errorf("secret %q is no text", secret)
	}
	return syscall.Exec(path, args[1:], append(os.Environ(), variable+"="+*out.SecretString))
}
