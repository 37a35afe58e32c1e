package awstest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// kmsService is the Key Management Service, as far as DescribeKey, Encrypt and Decrypt with a symmetric key
// (https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html).
type kmsService struct{ aws *AWS }

// CreateKey creates a symmetric key with random material in an account and region and returns its ARN.
func (a *AWS) CreateKey(partition, region, account string) (keyARN string, err error) {
	if !partitionForm.MatchString(partition) || region == "" || !accountForm.MatchString(account) {
		return "", fmt.Errorf("create key in %q %q %q: want a partition, a region and a 12-digit account", partition, region,
			account)
	}
	material := make([]byte, 32)
	rand.Read(material) // never fails
	block, err := aes.NewCipher(material)
	if err != nil {
		return "", fmt.Errorf("create key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return "", fmt.Errorf("create key: %w", err)
	}
	k := kmsKey{arn{partition, "kms", region, account, "key/" + requestID()}, aead, a.now()}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	a.store.keys[k.arn.String()] = k
	return k.arn.String(), nil
}

func (s kmsService) action(req *request) string { return targetAction(req, "TrentService") }

func (s kmsService) fail(err *apiError, _ string) reply { return jsonError(err) }

func (s kmsService) serve(_ context.Context, req *request) (reply, error) {
	if err := s.aws.verify(req); err != nil {
		return reply{}, err
	}
	switch req.action {
	case "DescribeKey":
		return s.describe(req)
	case "Encrypt":
		return s.encrypt(req)
	case "Decrypt":
		return s.decrypt(req)
	default:
		return reply{}, badRequest("UnknownOperationException", "awstest serves DescribeKey, Encrypt and Decrypt only")
	}
}

const symmetricDefault = "SYMMETRIC_DEFAULT"

// describe answers DescribeKey (https://docs.aws.amazon.com/kms/latest/APIReference/API_DescribeKey.html).
func (s kmsService) describe(req *request) (reply, error) {
	var in struct {
		KeyID string `json:"KeyId"`
	}
	if err := decodeJSON(req, &in); err != nil {
		return reply{}, err
	}
	key, err := s.key(req, in.KeyID)
	if err != nil {
		return reply{}, err
	}
	if err := s.aws.authorize(req, "kms:DescribeKey", key.arn.String()); err != nil {
		return reply{}, err
	}
	return jsonReply(200, CodeOK, amzJSON, map[string]any{"KeyMetadata": map[string]any{
		"KeyId": strings.TrimPrefix(key.arn.resource, "key/"), "Arn": key.arn.String(), "AWSAccountId": key.arn.account,
		"CreationDate": float64(key.created.UnixMilli()) / 1000, "Description": "", "Enabled": true, "KeyState": "Enabled",
		"KeyManager": "CUSTOMER", "KeyUsage": "ENCRYPT_DECRYPT", "Origin": "AWS_KMS", "MultiRegion": false,
		"KeySpec": symmetricDefault, "CustomerMasterKeySpec": symmetricDefault,
		"EncryptionAlgorithms": []string{symmetricDefault},
	}}), nil
}

func (s kmsService) encrypt(req *request) (reply, error) {
	var in struct {
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		EncryptionContext map[string]string
	}
	if err := decodeJSON(req, &in); err != nil {
		return reply{}, err
	}
	if len(in.Plaintext) == 0 || len(in.Plaintext) > 4096 {
		return reply{}, badRequest("ValidationException", "1 validation error detected: Value at 'plaintext' failed to "+
			"satisfy constraint: Member must have length between 1 and 4096")
	}
	key, err := s.key(req, in.KeyID)
	if err != nil {
		return reply{}, err
	}
	if err := s.aws.authorize(req, "kms:Encrypt", key.arn.String()); err != nil {
		return reply{}, err
	}
	return jsonReply(200, CodeOK, amzJSON, map[string]any{
		"KeyId": key.arn.String(), "CiphertextBlob": key.seal(in.Plaintext, in.EncryptionContext),
		"EncryptionAlgorithm": symmetricDefault,
	}), nil
}

func (s kmsService) decrypt(req *request) (reply, error) {
	var in struct {
		KeyID             string `json:"KeyId"`
		CiphertextBlob    []byte
		EncryptionContext map[string]string
	}
	if err := decodeJSON(req, &in); err != nil {
		return reply{}, err
	}
	invalid := badRequest("InvalidCiphertextException", "")
	name, sealed, ok := splitBlob(in.CiphertextBlob)
	if !ok {
		return reply{}, invalid
	}
	key, err := s.key(req, name)
	if err != nil {
		return reply{}, invalid
	}
	if in.KeyID != "" {
		switch asked, err := s.key(req, in.KeyID); {
		case err != nil:
			return reply{}, err
		case asked.arn != key.arn:
			return reply{}, badRequest("IncorrectKeyException", "The key ID in the request does not identify a CMK that can "+
				"perform this operation.")
		}
	}
	if err := s.aws.authorize(req, "kms:Decrypt", key.arn.String()); err != nil {
		return reply{}, err
	}
	plain, ok := key.open(sealed, in.EncryptionContext)
	if !ok {
		return reply{}, invalid
	}
	return jsonReply(200, CodeOK, amzJSON, map[string]any{
		"KeyId": key.arn.String(), "Plaintext": plain, "EncryptionAlgorithm": symmetricDefault,
	}), nil
}

// key finds a key by its ID or ARN; keys live in the region of the call, IDs in the caller's account.
func (s kmsService) key(req *request, id string) (kmsKey, error) {
	a, err := parseARN(id)
	if err != nil {
		a = arn{req.caller.partition, "kms", req.region, req.caller.account, "key/" + id}
	}
	s.aws.store.mu.RLock()
	defer s.aws.store.mu.RUnlock()
	key, ok := s.aws.store.keys[a.String()]
	if !ok || a.region != req.region {
		return kmsKey{}, badRequest("NotFoundException", "Key '%s' does not exist", a)
	}
	return key, nil
}

// seal returns a blob that names its key, as KMS's do, and is bound to the encryption context.
func (k kmsKey) seal(plain []byte, context map[string]string) []byte {
	name := k.arn.String()
	blob := binary.BigEndian.AppendUint16(nil, uint16(len(name)))
	blob = append(blob, name...)
	nonce := make([]byte, k.aead.NonceSize())
	rand.Read(nonce) // never fails
	blob = append(blob, nonce...)
	return k.aead.Seal(blob, nonce, plain, additional(context))
}

func splitBlob(blob []byte) (keyARN string, sealed []byte, ok bool) {
	if len(blob) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(blob))
	if len(blob) < 2+n {
		return "", nil, false
	}
	return string(blob[2 : 2+n]), blob[2+n:], true
}

func (k kmsKey) open(sealed []byte, context map[string]string) ([]byte, bool) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, false
	}
	plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], additional(context))
	return plain, err == nil
}

// additional encodes the encryption context; JSON objects of a map are sorted by key. None and empty are the same.
func additional(context map[string]string) []byte {
	if len(context) == 0 {
		return nil
	}
	encoded, _ := json.Marshal(context) // a map of strings always marshals
	return encoded
}
