// Vault-seal encrypts and decrypts as Vault's awskms seal does, with the library that is the seal. What it encrypts is
// what Vault stores: the library's own message.
//
//	vault-seal encrypt KEY ENDPOINT <PLAIN >SEALED
//	vault-seal decrypt KEY ENDPOINT <SEALED >PLAIN
//
// Region and credentials are the library's to find.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"google.golang.org/protobuf/proto"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vault-seal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("want encrypt or decrypt, a key and an endpoint")
	}
	// The names are those of the seal stanza in Vault's configuration
	// (https://developer.hashicorp.com/vault/docs/configuration/seal/awskms).
	seal := awskms.NewWrapper()
	config := wrapping.WithConfigMap(map[string]string{"kms_key_id": args[1], "endpoint": args[2]})
	if _, err := seal.SetConfig(ctx, config); err != nil {
		return err
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("read input: %w", err)
	}
	var out []byte
	switch args[0] {
	case "encrypt":
		out, err = encrypt(ctx, seal, in)
	case "decrypt":
		out, err = decrypt(ctx, seal, in)
	default:
		err = fmt.Errorf("%q is neither encrypt nor decrypt", args[0])
	}
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}

func encrypt(ctx context.Context, seal wrapping.Wrapper, plain []byte) ([]byte, error) {
	blob, err := seal.Encrypt(ctx, plain)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(blob)
}

func decrypt(ctx context.Context, seal wrapping.Wrapper, sealed []byte) ([]byte, error) {
	blob := new(wrapping.BlobInfo)
	if err := proto.Unmarshal(sealed, blob); err != nil {
		return nil, fmt.Errorf("read sealed message: %w", err)
	}
	return seal.Decrypt(ctx, blob)
}
