package role

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// maxSessionName is the longest role session name
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html).
const maxSessionName = 64

// SessionName is the name under which a session shows in CloudTrail: namespace, ServiceAccount and node, in the
// characters AWS allows. What does not fit ends in a hash of the whole: the name is always the same for the same three and
// differs for different ones (a namespace has no dot, and none of the three an @).
func SessionName(namespace, serviceAccount, node string) string {
	return sessionName("", namespace+"."+serviceAccount+"@"+node)
}

// CustomSessionName is the session name that an annotation asks for, behind a fixed prefix, so that the author of a pod
// cannot take the name of another workload.
func CustomSessionName(namespace, wanted string) string {
	return sessionName("podrole-", namespace+"-"+wanted)
}

func sessionName(prefix, text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("_+=,.@-", r):
			return r
		}
		return '-'
	}, text)
	if name := prefix + clean; clean == text && len(name) <= maxSessionName {
		return name
	}
	sum := sha256.Sum256([]byte(text))
	hash := "-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
	return prefix + clean[:min(len(clean), maxSessionName-len(prefix)-len(hash))] + hash
}
