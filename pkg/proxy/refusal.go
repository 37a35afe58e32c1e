package proxy

import (
	"errors"
	"net/http"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// refusal is an answer other than 200 that a handler returns as its error.
type refusal struct {
	status int
	reason string // for the log; never sent
	allow  string // the Allow header, with 405
	bare   bool   // no body, as IMDS refuses a PUT
}

// Error implements error.
func (r *refusal) Error() string { return r.reason }

// The refusals. What IMDS does in each case is in AWS's documentation or was observed on instances.
var (
	errTTL       = &refusal{status: http.StatusBadRequest, reason: "token TTL is missing or not in 1..21600 s"}
	errNoToken   = &refusal{status: http.StatusUnauthorized, reason: "no token, and IMDSv1 is off"}
	errBadToken  = &refusal{status: http.StatusUnauthorized, reason: "token is malformed, expired, or another pod's"}
	errForwarded = &refusal{status: http.StatusForbidden, reason: "request carries X-Forwarded-For"}
	errHost      = &refusal{status: http.StatusForbidden, reason: "host is not the metadata service's"}
	errPut       = &refusal{status: http.StatusForbidden, reason: "PUT to another path than the token's", bare: true}
	errPath      = &refusal{status: http.StatusNotFound, reason: "no such path"}
	errRoleName  = &refusal{status: http.StatusNotFound, reason: "not the pod's role"}
	errMethod    = &refusal{status: http.StatusMethodNotAllowed, reason: "method not allowed", allow: "GET, HEAD"}
	errTokenGet  = &refusal{status: http.StatusMethodNotAllowed, reason: "method not allowed", allow: tokenMethods}
)

// statusOf returns the status code that err is answered with. A decision against the pod is a 404, as on an instance
// without a role; not to know yet is a 503, which SDKs that retry do retry.
func statusOf(err error) int {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.status
	}
	if _, ok := errors.AsType[*role.Denial](err); ok {
		return http.StatusNotFound
	}
	if sts.KindOf(err) == sts.Denied {
		return http.StatusNotFound
	}
	return http.StatusServiceUnavailable
}

// The error page of IMDS in its parts. The indentation before the DTD's address differs between pages of real
// instances: a 404 of 339 bytes and a 401 of 343 are on record.
const (
	pageHead = `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
`
	pageDTD = `"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>`
	pageTitle = `</title>
 </head>
 <body>
  <h1>`
	pageFoot = `</h1>
 </body>
</html>
`

	title400 = "400 - Missing or Invalid Parameters"
	title401 = "401 - Unauthorized"
	title403 = "403 - Forbidden"
	title404 = "404 - Not Found"
	title405 = "405 - Method Not Allowed"
	title503 = "503 - Service Unavailable"

	page400 = pageHead + "\t" + pageDTD + title400 + pageTitle + title400 + pageFoot
	page401 = pageHead + "\t" + pageDTD + title401 + pageTitle + title401 + pageFoot
	page403 = pageHead + "\t" + pageDTD + title403 + pageTitle + title403 + pageFoot
	page404 = pageHead + "\t\t " + pageDTD + title404 + pageTitle + title404 + pageFoot
	page405 = pageHead + "\t" + pageDTD + title405 + pageTitle + title405 + pageFoot
	page503 = pageHead + "\t" + pageDTD + title503 + pageTitle + title503 + pageFoot
)

// page returns the error page of a status code that statusOf returns.
func page(status int) string {
	switch status {
	case http.StatusBadRequest:
		return page400
	case http.StatusUnauthorized:
		return page401
	case http.StatusForbidden:
		return page403
	case http.StatusNotFound:
		return page404
	case http.StatusMethodNotAllowed:
		return page405
	default:
		return page503
	}
}
