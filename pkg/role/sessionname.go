package role

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Limits of RoleSessionName (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html): 2 to 64
// characters of [\w+=,.@-].
const (
	maxSessionName = 64
	hashDigits     = 10
)

// SessionName returns the name under which CloudTrail shows a session: NAMESPACE.SERVICEACCOUNT@NODE. It is valid
// for STS whatever the arguments are. A name that had to be shortened, or changed to be valid, ends in '=' and a
// hash of the arguments, so that different arguments give different names: a plain name never contains '=', a
// namespace no '.', and no part an '@'.
func SessionName(namespace, serviceAccount, node string) string {
	plain := namespace + "." + serviceAccount + "@" + node
	if len(plain) <= maxSessionName && isPlain(namespace, false) && isPlain(serviceAccount, true) && isPlain(node, true) {
		return plain
	}
	return hashed(plain, namespace, serviceAccount, node)
}

// CustomSessionName returns the session name that an annotation asks for, as podrole-NAMESPACE.WANTED: behind a prefix
// and the namespace, so that nobody can take the name of another workload. It is valid for STS whatever the arguments
// are.
func CustomSessionName(namespace, wanted string) string {
	plain := "podrole-" + namespace + "." + wanted
	if len(plain) <= maxSessionName && isPlain(namespace, false) && isPlain(wanted, true) {
		return plain
	}
	return hashed(plain, namespace, wanted)
}

// hashed returns plain as far as it fits and is valid, and a hash of the parts that tells it from all others.
func hashed(plain string, parts ...string) string {
	name := strings.Map(func(r rune) rune {
		if isNameChar(r) || r == '.' || r == '@' {
			return r
		}
		return '-'
	}, plain)
	name = name[:min(len(name), maxSessionName-1-hashDigits)]
	// No Kubernetes name contains a zero byte, so no two lists of names are one input.
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return name + "=" + hex.EncodeToString(sum[:])[:hashDigits]
}

// isPlain reports whether every character of part may stand in a plain session name.
func isPlain(part string, dots bool) bool {
	for _, r := range part {
		if !isNameChar(r) && (r != '.' || !dots) {
			return false
		}
	}
	return true
}

func isNameChar(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}
