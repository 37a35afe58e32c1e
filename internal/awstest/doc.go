// Package awstest is an AWS stand-in that verifies. It answers like AWS only to requests that AWS itself would have
// accepted: every SigV4 signature is recomputed with the SDK's own signer from the request as received, every web
// identity token is checked against its issuer's keys, every role by its trust policy, every session by its own secret,
// token and expiry. Whatever it does not model it refuses; it never passes something it could not check.
//
// It opens no socket and starts no goroutine. [AWS.Endpoint] and [Metadata] are http.Handlers; the caller puts them on
// listeners of its choosing, in whichever network namespace. Faults can be injected and calls counted while it runs.
//
// Served are the parts that credential clients touch: STS (AssumeRole, AssumeRoleWithWebIdentity, GetCallerIdentity),
// S3 ListBuckets, KMS DescribeKey, Encrypt and Decrypt, Secrets Manager GetSecretValue, and the instance metadata service
// of nodes.
package awstest
