package awstest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxBody bounds request bodies; no API here takes as much.
const maxBody = 1 << 20

// service is one AWS service behind an endpoint.
type service interface {
	// action names what the request asks for; empty when it says nothing that the service knows.
	action(req *request) string
	// serve carries the request out. It is called after faults, before verification.
	serve(ctx context.Context, req *request) (reply, error)
	// fail renders a refusal in the service's dialect.
	fail(err *apiError, requestID string) reply
}

// request is a request as received, and what is known about it.
type request struct {
	http      *http.Request
	body      []byte
	query     url.Values
	params    url.Values // of the query protocol: the query, then the form body
	arrived   time.Time
	id        string
	told      string // region the listener stands for
	region    string
	signature *signature // nil when unsigned
	caller    *principal // set by verify
	action    string
}

// reply is an answer before it is written.
type reply struct {
	status  int
	header  http.Header
	body    []byte
	outcome string // CodeOK or the error's code
}

type endpoint struct {
	aws    *AWS
	region string
}

// ServeHTTP implements http.Handler.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.aws.calls.begin()
	call := Call{Start: e.aws.now(), Code: CodeClientGone}
	call.Source, _ = netip.ParseAddrPort(r.RemoteAddr)
	ended := false
	end := func() {
		if !ended {
			ended = true
			call.Latency = e.aws.now().Sub(call.Start)
			e.aws.calls.end(call)
		}
	}
	defer end()

	req := &request{http: r, arrived: call.Start, id: requestID(), told: e.region}
	parseErr := req.read(w)
	svc := req.describe(e.aws, &call)

	latency, outcome := e.aws.faults.hit(call)
	if !pause(r.Context(), latency) {
		return
	}
	var answer reply
	switch {
	case outcome != nil && outcome.Hang:
		<-r.Context().Done()
		return
	case outcome != nil && outcome.Reset:
		call.Code = CodeReset
		end()
		reset(w)
		return
	case outcome != nil:
		answer = svc.fail(&apiError{outcome.Status, outcome.Code, outcome.Message}, req.id)
	case parseErr != nil:
		answer = failed(svc, parseErr, req.id)
	default:
		var err error
		if answer, err = svc.serve(r.Context(), req); err != nil {
			answer = failed(svc, err, req.id)
		}
	}
	if req.caller != nil {
		call.CallerARN = req.caller.arn
		if call.RoleARN == "" {
			call.RoleARN = req.caller.roleARN
		}
	}
	call.Code, call.Status = answer.outcome, answer.status
	end()
	answer.write(w, req.id)
}

// read reads the body, the query and the signature's claims. What went wrong is told by the service's serve path, so
// that it comes out in the service's dialect.
func (r *request) read(w http.ResponseWriter) error {
	var err error
	r.query, err = url.ParseQuery(r.http.URL.RawQuery)
	if err != nil {
		return badRequest("MalformedQueryString", "The query string contains a syntax error.")
	}
	if r.body, err = io.ReadAll(http.MaxBytesReader(w, r.http.Body, maxBody)); err != nil {
		return badRequest(codeValidation, "The request body cannot be read.")
	}
	r.params = r.query
	if strings.HasPrefix(r.http.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form, err := url.ParseQuery(string(r.body))
		if err != nil {
			return badRequest("MalformedQueryString", "The request body contains a syntax error.")
		}
		for name, values := range r.query {
			form[name] = append(values, form[name]...)
		}
		r.params = form
	}
	r.signature, err = parseSignature(r.http, r.query)
	return err
}

// describe fills in what the record says of a call, and what faults select by, before anything is verified.
func (r *request) describe(a *AWS, call *Call) service {
	svc := a.services["sts"]
	call.Service = "sts"
	if s := r.signature; s != nil {
		call.Service, r.region = s.service, s.region
		if known, ok := a.services[s.service]; ok {
			svc = known
		} else {
			svc = unknownService{}
		}
	}
	if r.region == "" {
		r.region = regionOfHost(r.http.Host)
	}
	if r.region == "" {
		r.region = r.told
	}
	if r.params == nil {
		r.params = url.Values{}
	}
	r.action = svc.action(r)
	call.Region, call.Action = r.region, r.action
	if call.Service == "sts" {
		call.RoleARN, call.SessionName = r.params.Get("RoleArn"), r.params.Get("RoleSessionName")
	}
	return svc
}

// context returns the condition keys that every verified request has.
func (r *request) context() map[string][]string {
	context := map[string][]string{"aws:requestedregion": {r.region}}
	if p := r.caller; p != nil {
		context["aws:principalaccount"] = []string{p.account}
		context["aws:principalarn"] = []string{p.arn}
		if p.roleARN != "" {
			// Of a session, the key holds the role's ARN
			// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html).
			context["aws:principalarn"] = []string{p.roleARN}
		}
		for name, value := range p.tags {
			context["aws:principaltag/"+strings.ToLower(name)] = []string{value}
		}
	}
	return context
}

func failed(svc service, err error, requestID string) reply {
	refusal, ok := errors.AsType[*apiError](err)
	if !ok {
		refusal = &apiError{http.StatusInternalServerError, "InternalFailure", err.Error()}
	}
	return svc.fail(refusal, requestID)
}

func (a reply) write(w http.ResponseWriter, requestID string) {
	maps.Copy(w.Header(), a.header)
	w.Header().Set("X-Amzn-Requestid", requestID)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	// A client that left is no concern of ours.
	_, _ = w.Write(a.body)
}

// requestID returns a random UUID.
func requestID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	x := hex.EncodeToString(b[:])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// unknownService answers what is signed for a service that is not served here.
type unknownService struct{}

func (unknownService) action(*request) string { return "" }

func (unknownService) serve(_ context.Context, req *request) (reply, error) {
	return reply{}, &apiError{http.StatusNotFound, "UnknownOperationException",
		"awstest does not serve " + req.signature.service}
}

func (unknownService) fail(err *apiError, requestID string) reply { return queryError(err, requestID) }
