package systems_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestVaultSeal: Vault's awskms seal seals and unseals with the role of its pod; one that starts anew unseals what another
// sealed.
func TestVaultSeal(t *testing.T) {
	s := newStage(t)
	binary := client(t, "vault-seal")
	newKey := func() string {
		key, err := s.bed.AWS.CreateKey("aws", testbed.Region, testbed.Account)
		must(t, err)
		return key
	}
	key, another := newKey(), newKey()
	// What the seal needs (https://developer.hashicorp.com/vault/docs/configuration/seal/awskms).
	vault := s.addPod(t, "vault", permitOn(key, "kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"))
	sealer := s.addPod(t, "sealer", permitOn(key, "kms:Encrypt", "kms:DescribeKey"))
	nobody := s.addPodWithoutRole(t, "web")
	s.start(t)

	seal := func(pod *nodebox.Pod, verb, key, in string) (string, error) {
		t.Helper()
		return s.run(t, program{in: pod.Namespace, command: []string{binary, verb, key, s.bed.STS()}, stdin: in})
	}
	const secret = "the root key of all keys"
	sealed, err := seal(vault, "encrypt", key, secret)
	must(t, err)
	if strings.Contains(sealed, secret) {
		t.Error("what is sealed can be read")
	}
	if opened, err := seal(vault, "decrypt", key, sealed); err != nil || opened != secret {
		t.Errorf("unsealed: got %q, %v", opened, err)
	}
	for _, c := range s.bed.AWS.Calls(awstest.Filter{Service: "kms"}) {
		if c.CallerARN != sessionARN(testbed.Account, "vault", "vault") || c.Code != awstest.CodeOK {
			t.Errorf("%s by %q: %s", c.Action, c.CallerARN, c.Code)
		}
	}

	opened, err := seal(sealer, "decrypt", key, sealed)
	refused(t, "a role that may not decrypt", opened, err, "AccessDeniedException")
	opened, err = seal(vault, "encrypt", another, secret)
	refused(t, "a key that the role may not use", opened, err, "AccessDeniedException")
	opened, err = seal(nobody, "decrypt", key, sealed)
	refused(t, "a pod without a role", opened, err, noCredentialsGoV1)
	opened, err = seal(vault, "decrypt", key, tamper(t, sealed, key))
	refused(t, "what was tampered with", opened, err, "InvalidCiphertextException")
}

// tamper changes a bit of the wrapped key, which awstest writes behind the name of the key that wraps it, and that behind
// its length.
func tamper(t *testing.T, sealed, key string) string {
	t.Helper()
	changed := []byte(sealed)
	_, wrapped, ok := bytes.Cut(changed, append(binary.BigEndian.AppendUint16(nil, uint16(len(key))), key...))
	if !ok || len(wrapped) == 0 {
		t.Fatalf("no wrapped key in %q", sealed)
	}
	wrapped[0] ^= 1
	return string(changed)
}
