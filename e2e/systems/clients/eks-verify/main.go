// Eks-verify does what an EKS control plane does with a bearer token: it holds it against aws-iam-authenticator's own
// verifier, which asks STS who signed it.
//
//	eks-verify -cluster NAME -region REGION -sts ADDRESS <TOKEN >IDENTITY
//
// The verifier accepts tokens for the real names of STS alone. These lead to ADDRESS here, whose certificate must be good
// for the name and be trusted by way of SSL_CERT_FILE. The identity is written as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/aws-iam-authenticator/pkg/token"
)

func main() {
	cluster := flag.String("cluster", "", "the `name` that tokens are for")
	region := flag.String("region", "", "the cluster's `region`")
	sts := flag.String("sts", "", "`address` that the names of STS lead to")
	flag.Parse()
	if err := verify(*cluster, *region, *sts, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "eks-verify:", err)
		os.Exit(1)
	}
}

func verify(cluster, region, sts string, in io.Reader, out io.Writer) error {
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return errors.New("the default transport is none that can be led elsewhere")
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, sts)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	identity, err := token.NewVerifier(cluster, "aws", region).Verify(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(identity)
}
