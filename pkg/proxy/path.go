package proxy

import "strings"

// Route is a kind of request, as metrics name it. The set is fixed.
type Route string

// The routes.
const (
	RouteToken       Route = "token"       // PUT and OPTIONS /latest/api/token
	RouteRole        Route = "role"        // the listing that names the pod's role
	RouteCredentials Route = "credentials" // the role's credentials
	RouteInfo        Route = "info"        // iam/info
	RouteVersions    Route = "versions"    // "/"
	RouteMetadata    Route = "metadata"    // an allowed leaf or a listing below a version
	RouteContainer   Route = "container"   // the container credentials endpoint
	RouteUnknown     Route = "unknown"     // everything else, always refused
)

// target is where a request wants to go.
type target struct {
	route    Route
	name     string // RouteCredentials: the role asked for; RouteMetadata: the path below the version prefix
	extended bool   // of the security-credentials-extended tree, which adds the account ID
	json     bool   // of the container credentials endpoint, which answers JSON also when it refuses
}

const (
	tokenPath    = "/latest/api/token"
	infoPath     = "meta-data/iam/info"
	rolePath     = "meta-data/iam/security-credentials"
	extendedPath = "meta-data/iam/security-credentials-extended"
)

// versions is the listing of "/": what the service lists, for the clients that pick a version from it.
const versions = "1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n2007-12-15\n2008-02-01\n2008-09-01\n" +
	"2009-04-04\n2011-01-01\n2011-05-01\n2012-01-12\n2014-02-25\n2014-11-05\n2015-10-20\n2016-04-19\n2016-06-30\n" +
	"2016-09-02\n2018-03-28\n2018-08-17\n2018-09-24\n2019-10-01\n2020-10-27\n2021-01-03\n2021-03-23\n2021-07-15\n" +
	"2022-07-09\n2022-09-24\n2024-04-11\nlatest"

// resolve finds the target of a path that net/http has unescaped, once. Every version prefix leads to the same tree
// and the same policy: an unknown date must not be a way around it. What it does not recognise stays unknown, among
// that whatever still holds an escape, a backslash or a semicolon, because no allowed path has one.
func resolve(path string) target {
	path = normalise(path)
	if path == tokenPath {
		return target{route: RouteToken}
	}
	if path == "/" {
		return target{route: RouteVersions}
	}
	version, rest, _ := strings.Cut(strings.Trim(path, "/"), "/")
	if !isVersion(version) {
		return target{route: RouteUnknown}
	}
	switch rest {
	case infoPath:
		return target{route: RouteInfo}
	case rolePath:
		return target{route: RouteRole}
	case extendedPath:
		return target{route: RouteRole, extended: true}
	}
	if name, ok := strings.CutPrefix(rest, rolePath+"/"); ok {
		return target{route: RouteCredentials, name: name}
	}
	if name, ok := strings.CutPrefix(rest, extendedPath+"/"); ok {
		return target{route: RouteCredentials, name: name, extended: true}
	}
	return target{route: RouteMetadata, name: rest}
}

// normalise resolves empty, "." and ".." segments as a file system would; ".." does not climb above the root. Real
// clients send all three: boto2 "//", VM::EC2 "..". A slash at the end stays, one of it, since the token's path must
// not have any. The result starts with a slash, or is empty for a path that does not. It is the argument itself, with
// nothing allocated, for a path that is normal already.
func normalise(path string) string {
	switch {
	case path == "": // http://169.254.169.254 without a path, as a client sends it to an HTTP proxy
		return "/"
	case path[0] != '/': // "*"
		return ""
	case !strings.Contains(path, "//") && !strings.Contains(path, "/."):
		return path
	}
	var segments []string
	open := false // whether the last segment leaves a slash at the end
	for s := range strings.SplitSeq(path[1:], "/") {
		open = s == "" || s == "." || s == ".."
		switch {
		case s == ".." && len(segments) > 0:
			segments = segments[:len(segments)-1]
		case !open:
			segments = append(segments, s)
		}
	}
	if len(segments) > 0 && open {
		segments = append(segments, "")
	}
	return "/" + strings.Join(segments, "/")
}

// isVersion reports whether s is a version prefix: latest, 1.0, or a date, known or not.
func isVersion(s string) bool {
	if s == "latest" || s == "1.0" {
		return true
	}
	if len(s) != len("2009-04-04") {
		return false
	}
	for i := range len(s) {
		if i == 4 || i == 7 {
			if s[i] != '-' {
				return false
			}
		} else if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
