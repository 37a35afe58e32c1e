package kubetest

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

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
	// RBAC says what User may do. Required.
	RBAC *RBAC
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
	cfg   Config
	store *store
	calls calls
}

// New returns an API without objects.
func New(cfg Config) (*API, error) {
	if cfg.User == "" || cfg.BearerToken == "" || cfg.RBAC == nil || cfg.Signer == nil {
		return nil, errors.New("new API: User, BearerToken, RBAC and Signer are required")
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
	return &API{cfg: cfg, store: newStore(cfg.History)}, nil
}

// ServeHTTP implements http.Handler: authentication, authorization, content negotiation, then the resource.
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
	if err := x.authorize(); err != nil {
		return err
	}
	k, known := kinds()[x.target.resource]
	switch t := x.target; {
	case t.isCore && t.resource == eventsResource && t.subresource == "" && t.verb == "create":
		return x.createEvent()
	case t.isCore && t.resource == eventsResource && t.subresource == "" && t.verb == "patch":
		return x.patchEvent()
	case !t.isCore || !known:
		return apierrors.NewNotFound(schema.GroupResource{Group: t.group, Resource: t.resource}, t.name)
	case t.resource == "serviceaccounts" && t.subresource == "token" && t.verb == "create":
		return x.createToken()
	case t.subresource == "" && (t.verb == "list" || t.verb == "watch"):
		return x.read(k)
	default:
		return apierrors.NewMethodNotSupported(schema.GroupResource{Resource: t.fullResource()}, t.verb)
	}
}

// authorize is the API server's RBAC authorizer. It grants nothing by default: system:authenticated's right to discovery,
// which a real cluster gives, is not needed.
func (x *exchange) authorize() error {
	t := x.target
	if x.api.cfg.RBAC.allows(x.api.cfg.User, t) {
		return nil
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: t.group, Resource: t.fullResource()}, t.name,
		errors.New(x.api.cfg.User+" may not "+t.verb+" it: no rule of "+x.api.cfg.RBAC.source+" allows it"))
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
