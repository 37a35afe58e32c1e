package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
)

// Methods of the token's path, as IMDS lists them.
const tokenMethods = "OPTIONS, PUT"

// Headers of IMDSv2, in the canonical form of net/http.
const (
	tokenHeaderKey    = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeaderKey = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// exchange is one request and the way to its answer. It is part of its connection; beside that, a request that is answered
// from memory allocates the string of header values.
type exchange struct {
	*Server
	request *http.Request
	service service
	target  target
	source  netip.Addr
	token   token         // verified for source; zero without one
	now     time.Time     // by the injected clock, when the request came
	pod     role.Workload // once known
	budget  budget
	header  header
	length  int // of the answer's body, once it is written
}

// serveHTTP is the adapter between net/http and the handlers: the only place that turns an error into a status code,
// logs it, and counts the request.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	c := r.Context().Value(connectionKey{}).(*connection)
	x := &c.exchange
	to := s.hosts.service(r.Host)
	*x = exchange{
		Server:  s,
		request: r,
		service: to,
		target:  to.resolve(r.URL.Path),
		source:  c.peer.Addr(),
		now:     s.now(),
		budget:  budget{Context: r.Context(), deadline: started.Add(s.wait)},
	}
	defer x.budget.release()

	a, err := x.answer()
	if err != nil {
		a = answerTo(err, x.target.json)
		x.log(a.status, err)
	}
	if r.Method != http.MethodHead {
		x.length = len(a.body) + len(a.page)
	}
	x.header.write(w, a, x.target.json, s.started)
	s.observe(x.target.route, a.status, time.Since(started))
}

// log reports a refusal. What a client did, or was denied, it can do any number of times: that is for debugging. That
// an answer was not there in time is for the operator, but not once per request of a pod that retries.
func (x *exchange) log(status int, err error) {
	level := slog.LevelDebug
	if status == http.StatusServiceUnavailable && x.request.Context().Err() == nil {
		level = slog.LevelWarn
	}
	if !x.logger.Enabled(x.budget.Context, level) {
		return
	}
	emit := func() {
		attrs := []slog.Attr{
			slog.String("route", string(x.target.route)),
			slog.String("method", x.request.Method),
			slog.String("path", x.request.URL.Path),
			slog.Int("code", status),
			slog.Any("source", x.source),
			slog.Any("error", err),
		}
		if x.pod != (role.Workload{}) {
			attrs = append(attrs, slog.Any("workload", x.pod))
		}
		x.logger.LogAttrs(x.budget.Context, level, "request refused", attrs...)
	}
	if level == slog.LevelDebug {
		emit()
		return
	}
	x.warnings.Do(emit)
}

// answer finds the answer, or an error that stands for it.
func (x *exchange) answer() (answer, error) {
	r := x.request
	if !x.source.IsValid() {
		return answer{}, errors.New("the connection comes from no IP address")
	}
	// What a proxy passes on comes from the proxy's pod, whoever asked for it. IMDS refuses such requests too
	// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html).
	if len(r.Header["X-Forwarded-For"]) > 0 {
		return answer{}, errForwarded
	}
	switch x.service {
	case serviceNone:
		return answer{}, errHost
	case serviceContainer:
		return x.containerCredentials()
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return x.get()
	case http.MethodPut:
		return x.put()
	case http.MethodOptions:
		if x.target.route == RouteToken {
			return answer{status: http.StatusOK, allow: tokenMethods}, nil
		}
	}
	return answer{}, x.methodNotAllowed()
}

func (x *exchange) methodNotAllowed() error {
	if x.target.route == RouteToken {
		return errTokenGet
	}
	return errMethod
}

// put mints a token. It never waits and never fails for want of an identity: SDKs take a failed PUT as final, or fall
// back to IMDSv1 for good. The pod is put in if it is known.
func (x *exchange) put() (answer, error) {
	if x.target.route != RouteToken {
		return answer{}, errPut
	}
	values := x.request.Header[tokenTTLHeaderKey]
	if len(values) == 0 {
		return answer{}, errTTL
	}
	ttl, err := strconv.ParseUint(values[0], 10, 16)
	if err != nil || ttl < minTokenTTL || ttl > maxTokenTTL {
		return answer{}, errTTL
	}
	x.pod, _ = x.identity.Lookup(x.source)
	a := ok([]byte(x.tokens.Load().mint(x.now, int(ttl), x.source, x.pod.UID)))
	a.ttl = int(ttl)
	return a, nil
}

// get answers GET and HEAD.
func (x *exchange) get() (answer, error) {
	if x.target.route == RouteToken {
		return answer{}, x.methodNotAllowed()
	}
	if err := x.authorize(); err != nil {
		return answer{}, err
	}
	a, err := x.read()
	if err == nil && x.token.key != nil {
		a.ttl = x.token.remaining(x.now)
	}
	return a, err
}

// authorize checks the request's token, as far as that is possible without knowing the pod.
func (x *exchange) authorize() error {
	values := x.request.Header[tokenHeaderKey]
	if len(values) == 0 {
		if x.imdsv1 {
			return nil
		}
		return errNoToken
	}
	var err error
	if x.token, err = x.tokens.Load().verify(values[0], x.now, x.source); err != nil {
		return errBadToken
	}
	return nil
}

// read finds what is at the target.
func (x *exchange) read() (answer, error) {
	switch x.target.route {
	case RouteVersions:
		return x.public([]byte(versions))
	case RouteMetadata:
		return x.node()
	case RouteRole:
		return x.role()
	case RouteCredentials:
		return x.credentials()
	case RouteInfo:
		return x.info()
	default:
		return answer{}, errPath
	}
}

// public answers what every pod may read. It does not wait to know which one is asking, but a token that is known to
// be another pod's is not good for this either.
func (x *exchange) public(body []byte) (answer, error) {
	if x.token.key != nil {
		if pod, known := x.identity.Lookup(x.source); known && !x.token.verifyPod(x.source, pod.UID) {
			return answer{}, errBadToken
		}
	}
	return ok(body), nil
}

// node answers what pods may read of the node's metadata. Who is asking matters only for what not every pod may read, and
// only where there is anything that somebody might: in a listing, that is what may be added to it.
func (x *exchange) node() (answer, error) {
	r := metadata.Request{Path: x.target.name, Source: x.source}
	body, found, err := x.metadata.Read(&x.budget, r)
	if err != nil {
		return answer{}, err
	}
	if found && (x.allows == nil || !x.metadata.Varies(r.Path)) {
		return x.public(body)
	}
	if x.allows != nil && (found || metadata.Allowable(r.Path)) {
		if err := x.identify(); err != nil {
			return answer{}, err
		}
		if r.Allowed, err = x.allows.MetadataAllowed(&x.budget, x.pod); err != nil {
			return answer{}, fmt.Errorf("decide what %s may read: %w", x.pod, err)
		}
		if len(r.Allowed) > 0 {
			body, found, err = x.metadata.Read(&x.budget, r)
		}
		if found || err != nil {
			return ok(body), err
		}
	}
	x.target.route = RouteUnknown
	return answer{}, errPath
}

// identify finds out which pod is calling, and refuses the token of another one.
func (x *exchange) identify() error {
	var err error
	if x.pod, err = x.identity.Await(&x.budget, x.source); err != nil {
		return fmt.Errorf("identify %s: %w", x.source, err)
	}
	if x.token.key != nil && !x.token.verifyPod(x.source, x.pod.UID) {
		return errBadToken
	}
	return nil
}

// grant returns the calling pod's Grant, once pod and decision are known.
func (x *exchange) grant() (role.Grant, error) {
	if err := x.identify(); err != nil {
		return role.Grant{}, err
	}
	g, err := x.roles.Decide(&x.budget, x.pod)
	if err != nil {
		return role.Grant{}, fmt.Errorf("decide for %s: %w", x.pod, err)
	}
	return g, nil
}

// role answers the listing of the pod's role: its name and nothing else, not even a newline.
func (x *exchange) role() (answer, error) {
	g, err := x.grant()
	if err != nil {
		return answer{}, err
	}
	return ok([]byte(g.RoleName())), nil
}

// info answers iam/info with an instance profile of the pod's role.
func (x *exchange) info() (answer, error) {
	g, err := x.grant()
	if err != nil {
		return answer{}, err
	}
	return ok(renderInfo(g.RoleARN, x.now)), nil
}

// credentials answers for the role by its name, or by its ARN as users of kube2iam ask for it.
func (x *exchange) credentials() (answer, error) {
	g, err := x.grant()
	if err != nil {
		return answer{}, err
	}
	if x.target.name != g.RoleName() && x.target.name != g.RoleARN {
		return answer{}, errRoleName
	}
	session, err := x.session(g)
	if err != nil {
		return answer{}, err
	}
	a := ok(session.Body)
	a.modified = session.Minted
	if x.target.extended {
		a.body = withAccountID(session.Body, session.Credentials.AssumedRoleARN)
	}
	return a, nil
}

// session returns the Session of g, which is good now.
func (x *exchange) session(g role.Grant) (*cache.Session, error) {
	session, err := x.sessions.Get(&x.budget, g)
	if err != nil {
		return nil, fmt.Errorf("get session of %s for %s: %w", g.RoleARN, x.pod, err)
	}
	return session, check(session, g, x.now)
}

// check holds the last door: whatever went wrong before, credentials of another Grant or expired ones do not leave.
func check(session *cache.Session, g role.Grant, now time.Time) error {
	if session.Grant != g {
		return fmt.Errorf("session of %s was minted for another grant (%s)", g.RoleARN, session.Grant.RoleARN)
	}
	if !now.Before(session.Credentials.Expiration) {
		return fmt.Errorf("session of %s has expired at %s", g.RoleARN, session.Credentials.Expiration)
	}
	return nil
}
