package systems_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestEKSGetToken: a token that the AWS CLI makes in a pod is good for the verifier of EKS clusters, as the pod's role,
// and as nobody else and for nothing else.
func TestEKSGetToken(t *testing.T) {
	s := newStage(t)
	c := newControlPlane(t, s)
	// GetCallerIdentity needs no permission (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html).
	deployer, other, nobody := s.addPod(t, "deployer", ""), s.addPod(t, "other", ""), s.addPodWithoutRole(t, "web")
	s.start(t)

	const cluster = "box"
	token, err := c.getToken(t, deployer, cluster)
	must(t, err)
	who, err := c.verify(t, cluster, token)
	must(t, err)
	want := identity{
		ARN:          sessionARN(testbed.Account, "deployer", "deployer"),
		CanonicalARN: roleARN(testbed.Account, "deployer"), // what aws-auth and access entries know
		AccountID:    testbed.Account,
		SessionName:  namespace + ".deployer@" + testbed.NodeName,
		AccessKeyID:  who.AccessKeyID,
	}
	if session, ok := s.bed.AWS.LookupSession(who.AccessKeyID); who != want || !ok || session.RoleARN != want.CanonicalARN {
		t.Errorf("got %+v, want %+v", who, want)
	}
	others, err := c.getToken(t, other, cluster)
	must(t, err)
	if who, err := c.verify(t, cluster, others); err != nil || who.ARN != sessionARN(testbed.Account, "other", "other") {
		t.Errorf("another pod's token: got %+v, %v", who, err)
	}
	out, err := c.getToken(t, nobody, cluster)
	refused(t, "a pod without a role", out, err, noCredentialsCLI)

	set := func(name, value string) func(*url.URL) {
		return func(u *url.URL) {
			query := u.Query()
			query.Set(name, value)
			u.RawQuery = query.Encode()
		}
	}
	const signature, sessionToken = "X-Amz-Signature", "X-Amz-Security-Token"
	for name, bad := range map[string]struct {
		cluster string
		change  func(*url.URL)
		want    string
	}{
		"another_cluster":   {"elsewhere", func(*url.URL) {}, "SignatureDoesNotMatch"},
		"another_signature": {cluster, set(signature, urlOf(t, others).Query().Get(signature)), "SignatureDoesNotMatch"},
		"another_session":   {cluster, set(sessionToken, urlOf(t, others).Query().Get(sessionToken)), "got 403"},
		"another_action":    {cluster, set("Action", "AssumeRole"), "unexpected action"},
		"another_host":      {cluster, func(u *url.URL) { u.Host = "sts.eu-west-1.example.com" }, "hostname"},
		"without_tls":       {cluster, func(u *url.URL) { u.Scheme = "http" }, "unexpected scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := urlOf(t, token)
			bad.change(changed)
			who, err := c.verify(t, bad.cluster, tokenPrefix+base64.RawURLEncoding.EncodeToString([]byte(changed.String())))
			refused(t, "the verifier", fmt.Sprintf("%+v", who), err, bad.want)
		})
	}
}

// controlPlane is what an EKS cluster holds tokens against: the verifier of aws-iam-authenticator, and STS under its real
// name.
type controlPlane struct {
	*stage
	verifier  string
	sts       string // address
	authority string // file with the certificate of STS
}

// identity is whom a token is of, as the verifier says it.
type identity struct{ ARN, CanonicalARN, AccountID, SessionName, AccessKeyID string }

func newControlPlane(t *testing.T, s *stage) *controlPlane {
	t.Helper()
	certificate, authority, err := newCertificate("sts." + testbed.Region + ".amazonaws.com")
	must(t, err)
	address := s.serveOutside(t, 443, &http.Server{
		Handler:   s.bed.AWS.Endpoint(testbed.Region),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	})
	file := filepath.Join(s.bed.Box.Dir, "sts.pem")
	must(t, os.WriteFile(file, authority, 0o600))
	return &controlPlane{stage: s, verifier: client(t, "eks-verify"), sts: address.String(), authority: file}
}

// newCertificate returns a certificate for a host that signs itself, and itself in PEM.
func newCertificate(host string) (certificate tls.Certificate, authority []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, authority, nil
}

// verify holds a token against the verifier of a cluster, outside of the node.
func (c *controlPlane) verify(t *testing.T, cluster, token string) (who identity, err error) {
	t.Helper()
	out, err := c.run(t, program{
		in:      c.bed.Box.Outside,
		command: []string{c.verifier, "-cluster", cluster, "-region", testbed.Region, "-sts", c.sts},
		env:     []string{"SSL_CERT_FILE=" + c.authority},
		stdin:   token,
	})
	if err == nil {
		err = json.Unmarshal([]byte(out), &who)
	}
	return who, err
}

// getToken runs aws eks get-token in a pod.
func (c *controlPlane) getToken(t *testing.T, pod *nodebox.Pod, cluster string) (string, error) {
	t.Helper()
	out, err := c.aws(t, pod, "eks", "get-token", "--cluster-name", cluster)
	if err != nil {
		return out, err
	}
	var credential struct {
		Kind   string
		Status struct{ Token string }
	}
	if err := json.Unmarshal([]byte(out), &credential); err != nil || credential.Kind != "ExecCredential" {
		return "", fmt.Errorf("not an ExecCredential: %w: %s", err, out)
	}
	return credential.Status.Token, nil
}

// tokenPrefix stands before the presigned URL, encoded, that a token is.
const tokenPrefix = "k8s-aws-v1."

// urlOf returns the URL that a token is.
func urlOf(t *testing.T, token string) *url.URL {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, tokenPrefix))
	must(t, err)
	u, err := url.Parse(string(text))
	must(t, err)
	return u
}
