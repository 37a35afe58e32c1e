package metadata

import (
	"fmt"
	"strconv"
	"strings"
)

// Pattern allows a part of the node's metadata: what is at a path, with * for any one segment of it, and with ** at the
// end for one segment or more. What is at an allowed path is served as it is, also if that is a listing, but for listings
// that lead to what every pod may read: they name what the pod may read, and no more, also where a Pattern allows them
// themselves. No Pattern allows credentials, whoever's, nor what else makes one a node.
//
// The zero Pattern allows nothing. A Pattern is immutable.
type Pattern struct {
	segments []string // below the version prefix
}

const (
	anySegment = "*"
	anyRest    = "**"
)

// PatternError says why a pattern is refused, and what to write instead.
type PatternError struct {
	Pattern string // as it was given, or the beginning of it
	Problem string
}

// Error implements error.
func (e *PatternError) Error() string {
	return "metadata pattern " + strconv.Quote(e.Pattern) + ": " + e.Problem
}

// Limits of a list of patterns. They are matched one after the other, in requests.
const (
	maxPatterns = 32
	maxList     = 4 << 10
)

// ParsePatterns reads patterns separated by commas, spaces or both. A list without any is empty. The error is a
// *PatternError.
func ParsePatterns(list string) ([]Pattern, error) {
	if len(list) > maxList {
		return nil, refuse(list, "a list has at most %d characters", maxList)
	}
	var patterns []Pattern
	for text := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		if len(patterns) == maxPatterns {
			return nil, refuse(list, "a list has at most %d patterns", maxPatterns)
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// ParseAnnotation reads what a ServiceAccount's annotation allows its pods: a list as ParsePatterns reads it, but without
// what may hold secrets of the node's owner, which is not for the namespace's owner to give. The error is a *PatternError.
func ParseAnnotation(list string) ([]Pattern, error) {
	patterns, err := ParsePatterns(list)
	if err != nil {
		return nil, err
	}
	for _, p := range patterns {
		if p.overlaps(split(treeMetadata + "/tags")) {
			return nil, refuse(p.String(), "tags may hold secrets; only --metadata-allow can allow them")
		}
	}
	return patterns, nil
}

// ParsePattern reads one pattern, such as network/interfaces/macs/**. It is relative to meta-data/ unless it begins with
// that or with dynamic/. The error is a *PatternError.
func ParsePattern(text string) (Pattern, error) {
	segments := split(text)
	for i, s := range segments {
		switch {
		case s == "":
			return Pattern{}, refuse(text, "write segments with one slash between them, for example network/interfaces/macs/**")
		case s == anyRest && i < len(segments)-1:
			return Pattern{}, refuse(text, "** can only be at the end")
		case s == anySegment || s == anyRest:
		case strings.Contains(s, anySegment):
			return Pattern{}, refuse(text, "* stands for a whole segment")
		case !plain(s):
			return Pattern{}, refuse(text, "segments have letters, digits and %s only", plainSigns)
		}
	}
	if first := segments[0]; first != treeMetadata && first != treeDynamic && first != treeUser {
		segments = append([]string{treeMetadata}, segments...)
	}
	p := Pattern{segments}
	for _, s := range secrets() {
		if p.overlaps(split(s.path)) {
			return Pattern{}, refuse(text, "it covers %s, which %s", s.path, s.why)
		}
	}
	if len(segments) == 1 {
		return Pattern{}, refuse(text, "name a path below %s", text)
	}
	return p, nil
}

func refuse(pattern, problem string, args ...any) *PatternError {
	const longest = 100 // that a log line can bear
	if len(pattern) > longest {
		pattern = pattern[:longest] + "…"
	}
	return &PatternError{Pattern: pattern, Problem: fmt.Sprintf(problem, args...)}
}

// String returns the pattern with the name of its tree.
func (p Pattern) String() string { return strings.Join(p.segments, "/") }

// overlaps reports whether p allows anything at or below a path.
func (p Pattern) overlaps(path []string) bool {
	for i, s := range p.segments {
		if i == len(path) || s == anyRest {
			return true
		}
		if s != anySegment && !strings.EqualFold(s, path[i]) {
			return false
		}
	}
	return len(p.segments) == len(path)
}

// match reports whether p allows what is at path, and whether path leads to something that p allows.
func (p Pattern) match(path string) (allowed, leads bool) {
	for i, s := range p.segments {
		if path == "" {
			return false, i > 0
		}
		if s == anyRest {
			return true, false
		}
		var segment string
		segment, path, _ = strings.Cut(path, "/")
		if s != anySegment && s != segment {
			return false, false
		}
	}
	return path == "" && len(p.segments) > 0, false
}

// below returns what a listing names that leads to what p allows, with a slash if p goes on below that, too, and whether
// path is such a listing.
func (p Pattern) below(path string) (name string, leads bool) {
	if _, leads := p.match(path); !leads {
		return "", false
	}
	rest := p.segments[strings.Count(path, "/")+1:]
	if len(rest) > 1 {
		return rest[0] + "/", true
	}
	return rest[0], true
}

// literal returns what all paths that p allows have in common: p itself, or the listing that it begins with.
func (p Pattern) literal() (path string, listing bool) {
	for i, s := range p.segments {
		if s == anySegment || s == anyRest {
			return strings.Join(p.segments[:i], "/"), true
		}
	}
	return p.String(), false
}

// matchAny is match for several patterns.
func matchAny(path string, lists ...[]Pattern) (allowed, leads bool) {
	for _, patterns := range lists {
		for _, p := range patterns {
			a, l := p.match(path)
			allowed, leads = allowed || a, leads || l
		}
	}
	return allowed, leads
}

// The trees below a version prefix.
const (
	treeMetadata = "meta-data"
	treeDynamic  = "dynamic"
	treeUser     = "user-data"
)

// secret is a part of the metadata that no Pattern allows.
type secret struct{ path, why string }

// secrets returns what nobody but the node may read.
func secrets() []secret {
	const key = "is about keys to the node"
	return []secret{
		{"meta-data/iam", "is about credentials: a pod gets those of its own role there, and nobody else's"},
		{"meta-data/identity-credentials", "holds credentials of the node"},
		{"meta-data/managed-ssh-keys", key},
		{"meta-data/public-keys", key},
		{"user-data", "holds what the node starts with, secrets among it"},
		{"dynamic/instance-identity", "holds signatures by which others take one for the node; its document is for all pods anyway"},
	}
}

// Allowable reports whether any Pattern could allow what is at path. For all other paths nobody needs to find out who is
// asking.
func Allowable(path string) bool {
	const longest = 512
	if len(path) > longest {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || !plain(segment) {
			return false
		}
	}
	tree, below, _ := strings.Cut(path, "/")
	if tree != treeMetadata && tree != treeDynamic || below == "" {
		return false
	}
	return !isSecret(path)
}

// isSecret reports whether nobody but the node may read what is at path.
func isSecret(path string) bool {
	for _, s := range secrets() {
		if len(path) >= len(s.path) && strings.EqualFold(path[:len(s.path)], s.path) &&
			(len(path) == len(s.path) || path[len(s.path)] == '/') {
			return true
		}
	}
	return false
}

// plainSigns are the signs in names: those in the keys of tags
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html) are the most diverse.
const plainSigns = "+-=.,_:@"

// plain reports whether a segment is made of nothing that could be taken for something else upstream.
func plain(segment string) bool {
	for i := range len(segment) {
		c := segment[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte(plainSigns, c) < 0 {
			return false
		}
	}
	return true
}

func split(path string) []string { return strings.Split(path, "/") }
