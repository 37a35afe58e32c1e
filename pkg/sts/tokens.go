package sts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/podrole/podrole/pkg/role"
)

const actionTokenRequest = "TokenRequest"

const (
	// minTokenLifetime is the API server's (ValidateTokenRequest: "may not specify a duration less than 10 minutes").
	minTokenLifetime = 10 * time.Minute
	// tokenMargin is what a token must have left to be sent: the call's own time, and clocks that differ.
	tokenMargin = time.Minute
	// renewalPause is how long a token in hand is used without asking again after the API server gave no new one.
	renewalPause = time.Minute
)

// TokenConfig configures a TokenRequester.
type TokenConfig struct {
	// Client is the API server, usually clientset.CoreV1(). Required. Its client-side rate limit should allow as many
	// calls as sessions are minted.
	Client corev1.ServiceAccountsGetter
	// Lifetime asked for tokens. Default 6 h, at least 10 min. Tokens are replaced from a third of it on, so that an API
	// server outage of the rest, less the time between two mints, goes unnoticed: more than three hours of six. A longer
	// one survives longer outages, and leaves a stolen token useful for longer. The API server may grant less.
	Lifetime time.Duration
	// Size is the number of tokens kept, one per ServiceAccount and audience. Default 1024. The least recently used one
	// is dropped for a new one, which costs a TokenRequest when it is asked for again.
	Size int
	// Timeout of one TokenRequest. Default 5 s.
	Timeout time.Duration
	// Ready is closed once TokenRequests may be made. Until then a call waits for as long as one may take, and fails. Optional.
	Ready <-chan struct{}
	// Store keeps tokens from one process to the next. Optional.
	Store TokenStore
	// Logger is told when a token could not be replaced in time. Optional.
	Logger *slog.Logger
	// Observe is told of every TokenRequest, like Config.Observe, with the action "TokenRequest", no region, and the
	// API's status reason as code. Optional.
	Observe func(action, region, code string, took time.Duration)
}

// TokenRequester gets ServiceAccount tokens from the API server's TokenRequest API, bound to a pod by name and UID,
// and keeps them per namespace, ServiceAccount and audience. AWS does not look at the binding: a token outlives its
// pod, and serves the other pods of its ServiceAccount, until it expires. It is safe for concurrent use.
type TokenRequester struct {
	cfg    TokenConfig
	tokens *lru.Cache[TokenKey, *token]
}

var (
	_ Tokens  = (*TokenRequester)(nil)
	_ Renewer = (*TokenRequester)(nil)
)

// TokenKey is what tokens are kept by.
type TokenKey struct{ Namespace, ServiceAccount, Audience string }

// Token is a ServiceAccount token. It prints as its times only, whichever way it reaches a log or an error.
type Token struct {
	Value   string
	Issued  time.Time
	Expires time.Time
}

// String implements fmt.Stringer without the token itself.
func (t Token) String() string { return "token until " + t.Expires.UTC().Format(time.RFC3339) }

// GoString implements fmt.GoStringer, so that %#v prints no secret either.
func (t Token) GoString() string { return "sts.Token{" + t.String() + "}" }

// LogValue implements slog.LogValuer without the token itself.
func (t Token) LogValue() slog.Value { return slog.GroupValue(slog.Time("expiration", t.Expires)) }

// TokenStore keeps tokens from one process to the next. It must be safe for concurrent use.
type TokenStore interface {
	// Load returns the token kept for k; false if there is none.
	Load(k TokenKey) (Token, bool)
	// Save keeps t in place of what was kept for k.
	Save(k TokenKey, t Token) error
	// Delete forgets what is kept for k, if anything.
	Delete(k TokenKey) error
}

// token is the token of a key. Holding the one element of busy is holding its lock: a waiter can give up when its
// context ends, which a mutex does not allow, and a holder that fails leaves the next one to try for itself, which a
// shared flight does not.
type token struct {
	busy    chan struct{} // guards the following
	loaded  bool          // from the Store, if there was anything
	value   string
	renewAt time.Time
	expires time.Time
}

// set takes a token over. It is replaced from a third of its life on.
func (t *token) set(in Token) {
	t.value, t.expires, t.renewAt = in.Value, in.Expires, in.Issued.Add(in.Expires.Sub(in.Issued)/3)
}

// NewTokenRequester returns a TokenRequester, or an error that names the field at fault. It makes no call.
func NewTokenRequester(cfg TokenConfig) (*TokenRequester, error) {
	if cfg.Client == nil {
		return nil, errors.New("new token requester: Client is required")
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = 6 * time.Hour
	}
	if cfg.Lifetime < minTokenLifetime {
		return nil, fmt.Errorf("new token requester: Lifetime %s is below the API server's minimum of %s",
			cfg.Lifetime, minTokenLifetime)
	}
	if cfg.Size == 0 {
		cfg.Size = 1024
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("new token requester: Timeout %s is negative", cfg.Timeout)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, string, string, time.Duration) {}
	}
	if cfg.Ready == nil {
		at := make(chan struct{})
		close(at)
		cfg.Ready = at
	}
	tokens, err := lru.New[TokenKey, *token](cfg.Size)
	if err != nil {
		return nil, fmt.Errorf("new token requester: Size %d: %w", cfg.Size, err)
	}
	return &TokenRequester{cfg: cfg, tokens: tokens}, nil
}

// Token implements Tokens. It asks the API server when there is no token, or when the one in hand is past a third
// of its life or was refused by STS; in the latter cases it returns the one in hand if no other can be had and it has
// not expired. Calls for one key wait for each other. Every error is an *Error with Action TokenRequest, or the
// context's.
func (r *TokenRequester) Token(ctx context.Context, pod role.Workload, audience string) (string, error) {
	key := TokenKey{pod.Namespace, pod.ServiceAccount, audience}
	t := r.token(key)
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return "", fmt.Errorf("wait for token of %s/%s: %w", pod.Namespace, pod.ServiceAccount, context.Cause(ctx))
	}
	r.load(key, t)
	now := time.Now()
	if t.value != "" && now.Before(t.renewAt) {
		return t.value, nil
	}
	value, expires, err := r.request(ctx, pod, audience)
	now = time.Now()
	switch {
	case err == nil:
		fresh := Token{Value: value, Issued: now, Expires: expires}
		t.set(fresh)
		if r.cfg.Store != nil {
			r.kept(ctx, key, r.cfg.Store.Save(key, fresh))
		}
		return value, nil
	case err.Kind == Denied: // no ServiceAccount, no token: what is in hand speaks for one that is gone
		t.value = ""
		if r.cfg.Store != nil {
			r.kept(ctx, key, r.cfg.Store.Delete(key))
		}
		return "", err
	case t.value != "" && now.Before(t.expires.Add(-tokenMargin)):
		t.renewAt = now.Add(renewalPause)
		r.cfg.Logger.WarnContext(ctx, "token not renewed, using the one in hand", "namespace", pod.Namespace,
			"service_account", pod.ServiceAccount, "audience", audience, "expiration", t.expires, "error", err)
		return t.value, nil
	default:
		return "", err
	}
}

// load takes over what an earlier process kept, once. Caller holds t.busy.
func (r *TokenRequester) load(key TokenKey, t *token) {
	if r.cfg.Store == nil || t.loaded {
		return
	}
	t.loaded = true
	if kept, ok := r.cfg.Store.Load(key); ok && kept.Value != "" && t.value == "" {
		t.set(kept)
	}
}

// kept logs that the Store failed.
func (r *TokenRequester) kept(ctx context.Context, key TokenKey, err error) {
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "token not kept for the next agent", "namespace", key.Namespace,
			"service_account", key.ServiceAccount, "audience", key.Audience, "error", err)
	}
}

// Renew implements Renewer.
func (r *TokenRequester) Renew(pod role.Workload, audience, value string) {
	t, ok := r.tokens.Peek(TokenKey{pod.Namespace, pod.ServiceAccount, audience})
	if !ok {
		return
	}
	t.busy <- struct{}{}
	if t.value == value {
		t.renewAt = time.Time{}
	}
	<-t.busy
}

// token returns the entry of key, made if need be.
func (r *TokenRequester) token(key TokenKey) *token {
	if t, ok := r.tokens.Get(key); ok {
		return t
	}
	t := &token{busy: make(chan struct{}, 1)}
	if other, ok, _ := r.tokens.PeekOrAdd(key, t); ok {
		return other
	}
	return t
}

// request makes one TokenRequest.
func (r *TokenRequester) request(ctx context.Context, pod role.Workload, audience string) (string, time.Time, *Error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	select {
	case <-r.cfg.Ready:
	case <-ctx.Done():
		return "", time.Time{}, tokenError(fmt.Errorf("wait until tokens may be requested: %w", ctx.Err()), pod, audience)
	}
	start := time.Now()
	out, err := r.cfg.Client.ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.ServiceAccount,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences:         []string{audience},
			ExpirationSeconds: new(int64(r.cfg.Lifetime / time.Second)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: types.UID(pod.UID),
			},
		}}, metav1.CreateOptions{})
	if err == nil && (out.Status.Token == "" || !out.Status.ExpirationTimestamp.After(start)) {
		err = errors.New("read answer: no token in it, or one that has expired; check the node's clock")
	}
	took := time.Since(start)
	if err == nil {
		r.cfg.Observe(actionTokenRequest, "", codeOK, took)
		return out.Status.Token, out.Status.ExpirationTimestamp.Time, nil
	}
	e := tokenError(err, pod, audience)
	r.cfg.Observe(actionTokenRequest, "", tokenLabel(e), took)
	return "", time.Time{}, e
}

// tokenError classifies a failed TokenRequest. Only a ServiceAccount that does not exist is the Grant's own end
// (Denied). A pod that is gone (404, or 409 for its successor of the same name) is about to be released, and another
// pod may want the same Grant. A refusal (403, 422 from an admission policy) is about the agent's authority; the
// node authorizer also gives it for a pod that was scheduled a moment ago.
func tokenError(err error, pod role.Workload, audience string) *Error {
	reason := apierrors.ReasonForError(err)
	e := &Error{Kind: Transient, Action: actionTokenRequest, Code: string(reason), Err: err}
	switch reason {
	case metav1.StatusReasonNotFound:
		status, ok := errors.AsType[*apierrors.StatusError](err)
		if ok && status.ErrStatus.Details != nil && status.ErrStatus.Details.Kind == "serviceaccounts" {
			e.Kind = Denied
			e.Remedy = fmt.Sprintf("create ServiceAccount %s/%s", pod.Namespace, pod.ServiceAccount)
		}
	case metav1.StatusReasonForbidden:
		e.Remedy = fmt.Sprintf("allow the agent to create serviceaccounts/token of %s/%s for audience %q "+
			"(RBAC, node authorizer or admission policy)", pod.Namespace, pod.ServiceAccount, audience)
	case metav1.StatusReasonInvalid:
		e.Remedy = fmt.Sprintf("check that admission policies allow tokens of %s/%s for audience %q with the "+
			"lifetime that was asked for", pod.Namespace, pod.ServiceAccount, audience)
	case metav1.StatusReasonTooManyRequests:
		e.Kind = Throttled
	}
	return e
}

// tokenLabel returns the code of e as a metric label: Kubernetes' reasons that TokenRequest can give, and no others.
func tokenLabel(e *Error) string {
	switch metav1.StatusReason(e.Code) {
	case metav1.StatusReasonNotFound, metav1.StatusReasonConflict, metav1.StatusReasonForbidden,
		metav1.StatusReasonUnauthorized, metav1.StatusReasonInvalid, metav1.StatusReasonBadRequest,
		metav1.StatusReasonTooManyRequests, metav1.StatusReasonInternalError, metav1.StatusReasonTimeout,
		metav1.StatusReasonServerTimeout, metav1.StatusReasonServiceUnavailable:
		return e.Code
	case metav1.StatusReasonUnknown:
		return unanswered(e.Err, 0)
	default:
		return codeOther
	}
}
