package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"strings"
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

// timestamp is the one form of a time that every SDK reads: boto2 and old Common Runtimes fail on a fraction of a
// second or a numeric zone.
const timestamp = "2006-01-02T15:04:05Z"

// field is a member of a document.
type field struct{ key, value string }

// document renders fields as IMDS writes JSON: in a fixed order, indented by two spaces, a space on both sides of the
// colon, no newline at the end.
func document(fields ...field) []byte {
	var b bytes.Buffer
	for i, f := range fields {
		if i == 0 {
			b.WriteString("{\n")
		} else {
			b.WriteString(",\n")
		}
		writeField(&b, f)
	}
	b.WriteString("\n}")
	return b.Bytes()
}

func writeField(b *bytes.Buffer, f field) {
	b.WriteString("  ")
	writeString(b, f.key)
	b.WriteString(" : ")
	writeString(b, f.value)
}

func writeString(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	b.Truncate(b.Len() - 1)
}

// RenderCredentials returns the body with which IMDS answers for a role's credentials. It holds secrets.
// Minted becomes LastUpdated. A cache.Session keeps it as its Body.
//
// The format: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
func RenderCredentials(c sts.Credentials, minted time.Time) []byte {
	return document(
		field{"Code", "Success"},
		field{"LastUpdated", minted.UTC().Format(timestamp)},
		field{"Type", "AWS-HMAC"},
		field{"AccessKeyId", c.AccessKeyID},
		field{"SecretAccessKey", c.SecretAccessKey},
		field{"Token", c.SessionToken},
		field{"Expiration", c.Expiration.UTC().Format(timestamp)},
	)
}

// withAccountID returns the body of credentials with the account's ID as one more member, which is what the
// security-credentials-extended tree adds. It is the body itself when arn names no account.
func withAccountID(body []byte, arn string) []byte {
	account := accountOf(arn)
	if account == "" || !bytes.HasSuffix(body, []byte("\n}")) {
		return body
	}
	var b bytes.Buffer
	b.Grow(len(body) + 40)
	b.Write(body[:len(body)-len("\n}")])
	b.WriteString(",\n")
	writeField(&b, field{"AccountId", account})
	b.WriteString("\n}")
	return b.Bytes()
}

// accountOf returns the account of arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE, or nothing.
func accountOf(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 || parts[0] != "arn" {
		return ""
	}
	return parts[4]
}

// renderInfo returns the iam/info of an instance whose profile has the name of the role, which is what profiles made
// in the console have. There is no profile, so its ID is derived from the role.
func renderInfo(roleARN string, updated time.Time) []byte {
	sum := sha256.Sum256([]byte(roleARN))
	return document(
		field{"Code", "Success"},
		field{"LastUpdated", updated.UTC().Format(timestamp)},
		field{"InstanceProfileArn", strings.Replace(roleARN, ":role/", ":instance-profile/", 1)},
		field{"InstanceProfileId", "AIPA" + base32.StdEncoding.EncodeToString(sum[:])[:17]},
	)
}
