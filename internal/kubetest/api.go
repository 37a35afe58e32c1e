package kubetest

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/podrole/podrole/internal/awstest"
)

// Signer signs ServiceAccount tokens. *awstest.Issuer implements it. It must be safe for concurrent use.
type Signer interface {
	Token(awstest.TokenRequest) (string, error)
}

// Config is what New needs.
type Config struct {
	// User is who presents BearerToken, such as system:serviceaccount:NAMESPACE:NAME. Required.
	User string
	// BearerToken is the only credential that is accepted. Required.
	BearerToken string
	// Node, Pod and PodUID are the pod that BearerToken is bound to, and the node that pod is on: all or none of them. The
	// pod need not be among the objects.
	Node, Pod, PodUID string
	// RBAC says what User may do. Required.
	RBAC *RBAC
	// Policies are asked about what User writes. Optional.
	Policies *Policies
	// Signer signs what TokenRequest grants. Required.
	Signer Signer
	// NoStreamingLists refuses watches with sendInitialEvents, as an API server does whose feature gate WatchList is off:
	// clients then list before they watch.
	NoStreamingLists bool
	// History is the number of changes that a watch can go back; default 1024.
	History int
	// BookmarkEvery is the time between the bookmarks of a watch that allows them; default one minute, as with the API
	// server.
	BookmarkEvery time.Duration
}

// API is the stand-in. All methods are safe for concurrent use.
type API struct {
	cfg      Config
	identity authenticationv1.UserInfo // of who presents the bearer token
	store    *store
	calls    calls
}

// New returns an API without objects.
func New(cfg Config) (*API, error) {
	if cfg.User == "" || cfg.BearerToken == "" || cfg.RBAC == nil || cfg.Signer == nil {
		return nil, errors.New("new API: User, BearerToken, RBAC and Signer are required")
	}
	if (cfg.Node == "") != (cfg.Pod == "") || (cfg.Pod == "") != (cfg.PodUID == "") {
		return nil, errors.New("new API: of Node, Pod and PodUID, either all are given or none")
	}
	if cfg.History < 0 || cfg.BookmarkEvery < 0 {
		return nil, errors.New("new API: negative History or BookmarkEvery")
	}
	if cfg.History == 0 {
		cfg.History = 1024
	}
	if cfg.BookmarkEvery == 0 {
		cfg.BookmarkEvery = time.Minute
	}
	return &API{cfg: cfg, identity: newIdentity(cfg), store: newStore(cfg.History)}, nil
}

// ServeHTTP implements http.Handler: authentication, impersonation, authorization, content negotiation, then the resource,
// with admission where it writes.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{api: a, r: r, w: w, target: parseTarget(r)}
	if err := x.serve(); err != nil {
		x.refuse(err)
	}
}

// exchange is one request and its answer.
type exchange struct {
	api    *API
	r      *http.Request
	w      http.ResponseWriter
	target target
	user   authenticationv1.UserInfo // who asks, or is impersonated

	asNode    bool // the user is the client's own node, impersonated
	dryRun    bool // nothing is to change
	metadata  bool // the answer is to be PartialObjectMetadata
	streaming bool // the watch begins with what there is
}

// serve answers. An error has not been written yet.
func (x *exchange) serve() error {
	if x.api.store.isUnavailable() {
		return apierrors.NewServiceUnavailable("the stand-in was told to be unavailable")
	}
	scheme, token, _ := strings.Cut(x.r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare([]byte(token), []byte(x.api.cfg.BearerToken)) != 1 {
		return apierrors.NewUnauthorized("Unauthorized")
	}
	x.user = x.api.whoami()
	if err := x.impersonate(); err != nil {
		return err
	}
	if err := x.authorize(); err != nil {
		return err
	}
	return x.route()
}

// route answers what may be asked.
func (x *exchange) route() error {
	if v := x.target.verb; v != "get" && v != "list" && v != "watch" {
		if err := x.readDryRun(); err != nil {
			return err
		}
	}
	k, known := kinds()[x.target.resource]
	switch t := x.target; {
	case t.is(authenticationGroup, "selfsubjectreviews", "create"):
		return x.reviewSelf()
	case t.is(authorizationGroup, "selfsubjectaccessreviews", "create"):
		return x.reviewAccess()
	case t.is("", eventsResource, "create"):
		return x.createEvent()
	case t.is("", eventsResource, "patch"):
		return x.patchEvent()
	case !t.isCore || !known:
		return apierrors.NewNotFound(schema.GroupResource{Group: t.group, Resource: t.resource}, t.name)
	case t.is("", "serviceaccounts/token", "create"):
		return x.createToken()
	case t.is("", "nodes", "patch"):
		return x.patchNode()
	case t.subresource == "" && t.verb == "get":
		return x.get(k)
	case t.subresource == "" && (t.verb == "list" || t.verb == "watch"):
		return x.read(k)
	default:
		return apierrors.NewMethodNotSupported(schema.GroupResource{Resource: t.fullResource()}, t.verb)
	}
}

// get answers with one object.
func (x *exchange) get(k kind) error {
	var err error
	if x.metadata, err = negotiate(x.r.Header.Values("Accept"), "PartialObjectMetadata"); err != nil {
		return err
	}
	namespace := x.target.namespace
	if !k.namespaced { // a Namespace is in itself to the authorizer alone
		namespace = ""
	}
	o, ok := x.api.store.get(k.resource, namespace, x.target.name)
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: k.resource}, x.target.name)
	}
	return x.answer(http.StatusOK, x.present(o))
}

// read answers list and watch.
func (x *exchange) read(k kind) error {
	form := "PartialObjectMetadataList"
	if x.target.verb == "watch" {
		form = "PartialObjectMetadata"
	}
	var err error
	if x.metadata, err = negotiate(x.r.Header.Values("Accept"), form); err != nil {
		return err
	}
	options, err := x.listOptions()
	if err != nil {
		return err
	}
	s, err := newSelection(k, x.target.namespace, options)
	if err != nil {
		return err
	}
	if x.target.verb == "list" {
		return x.list(s, options)
	}
	return x.watch(s, options)
}

// header begins the answer and counts the request.
func (x *exchange) header(status int) {
	x.api.calls.add(x.request(status))
	x.w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	x.w.Header().Set("Cache-Control", "no-cache, private")
	x.w.WriteHeader(status)
}

// answer writes one object.
func (x *exchange) answer(status int, object any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	x.header(status)
	_, _ = x.w.Write(text) // a client that has gone away has gone away
	return nil
}

// refuse writes the Status object of an error.
func (x *exchange) refuse(err error) {
	known, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok {
		known = apierrors.NewInternalError(err)
	}
	status := statusObject(known)
	_ = x.answer(int(status.Code), status) // a Status always marshals
}

// statusObject returns err as it is sent.
func statusObject(err *apierrors.StatusError) *metav1.Status {
	status := err.ErrStatus
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return &status
}
