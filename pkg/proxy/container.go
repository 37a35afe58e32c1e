package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strings"
)

// The container credentials endpoint gives a pod the same credentials as the metadata service, to the SDKs whose
// environment leads them there: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI with a path at 169.254.170.2, as on ECS
// (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html), or
// AWS_CONTAINER_CREDENTIALS_FULL_URI with the path /v1/credentials at 169.254.170.23 or fd00:ec2::23, as with EKS Pod
// Identity (https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html): other addresses outside of the
// pod no SDK takes. What the path has for an ID says nothing here, and neither does an Authorization header: who is
// calling, the source address says.

// containerAddresses returns the endpoint's addresses.
func containerAddresses() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23"),
	}
}

// resolve finds the target of a request. The endpoint is there only where its own address is asked for it: the metadata
// service wants a token for credentials, if IMDSv1 is off, and must not be a way around that.
func (to service) resolve(path string) target {
	if to != serviceContainer {
		return resolve(path)
	}
	path = strings.TrimSuffix(normalise(path), "/")
	if path == "/v1/credentials" || path == "/v2/credentials" || strings.HasPrefix(path, "/v2/credentials/") {
		return target{route: RouteContainer, json: true}
	}
	return target{route: RouteUnknown, json: true}
}

// containerCredentials answers at the container credentials endpoint.
func (x *exchange) containerCredentials() (answer, error) {
	if x.request.Method != http.MethodGet && x.request.Method != http.MethodHead {
		return answer{}, errMethod
	}
	if x.target.route != RouteContainer {
		return answer{}, errPath
	}
	g, err := x.grant()
	if err != nil {
		return answer{}, err
	}
	session, err := x.session(g)
	if err != nil {
		return answer{}, err
	}
	body, err := containerBody(session.Body, g.RoleARN)
	if err != nil {
		return answer{}, err
	}
	return ok(body), nil
}

// containerBody returns credentials in the form of the endpoint: as the metadata service renders them, from the first of
// them on, behind the role they are of.
func containerBody(rendered []byte, roleARN string) ([]byte, error) {
	const first = `  "AccessKeyId"`
	at := bytes.Index(rendered, []byte(first))
	if at < 0 {
		return nil, errors.New("read rendered session: it has no access key ID")
	}
	const head = "{\n" + `  "RoleArn" : `
	body := make([]byte, 0, len(head)+len(roleARN)+len(`"",`+"\n")+len(rendered)-at)
	body = append(body, head...)
	body = appendString(body, roleARN)
	body = append(body, ",\n"...)
	return append(body, rendered[at:]...), nil
}

// appendString appends s as a JSON string, for which most have nothing to escape.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			escaped, _ := json.Marshal(s) // a string always marshals
			return append(b, escaped...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// containerPage returns the body of an error of the container credentials endpoint: SDKs show its code and message.
func containerPage(status int) string {
	switch status {
	case http.StatusForbidden:
		return `{"code":"AccessDenied","message":"the request came through a proxy"}`
	case http.StatusNotFound:
		return `{"code":"NotFound","message":"this pod has no role, or the path is not /v1/credentials or below /v2/credentials/"}`
	case http.StatusMethodNotAllowed:
		return `{"code":"MethodNotAllowed","message":"only GET and HEAD are allowed"}`
	default:
		return `{"code":"ServiceUnavailable","message":"the pod's credentials are not known yet"}`
	}
}
