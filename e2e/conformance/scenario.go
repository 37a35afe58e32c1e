package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/testbed"
)

// The scenarios, by the names of their columns.
const (
	scenarioCredentials = "credentials"
	scenarioRegion      = "region"
	scenarioRole        = "role name"
	scenarioNoRole      = "no role"
	scenarioCold        = "cold STS"
	scenarioFloor       = "floor"
	scenarioRestart     = "restart"
	scenarioTokens      = "v2 only"
	scenarioContainer   = "container"
	scenarioFullURI     = "container URI"
)

// scenario is something that happens to every client.
type scenario struct {
	name string
	what string // in one line, below the table
	// play returns what went wrong; note replaces "ok" in the table.
	play func(ctx context.Context, s *stage, r ready) (note string, err error)
	// learnt returns what shows that a client for which the scenario is n/a could play it after all. nil: nothing could
	// change that.
	learnt func(ctx context.Context, s *stage, r ready) error
}

// plain are the scenarios of an agent with its defaults.
func plain() []scenario {
	return []scenario{
		{scenarioCredentials, "the pod's own role, with no more requests than the client is known for", playCredentials, nil},
		{scenarioRegion, "the region, wherever the client looks for it", playRegion, nil},
		{scenarioRole, "asked for by name, the own role is served and another one is 404", playRole, nil},
		{scenarioNoRole, "a pod without a role: no credentials, said in time and without a hot loop", playNoRole, nil},
		{scenarioCold, "the first session takes STS 700 ms while the client waits", playCold, nil},
		{scenarioFloor, "credentials with 25 minutes left are used 20 times and read once", playFloor, nil},
	}
}

// containers are the scenarios of an agent with containerFlag.
func containers() []scenario {
	return []scenario{
		{scenarioContainer, "led to 169.254.170.2 as on ECS, the pod's own role from there and from nowhere else", playContainer, learntContainer},
		{scenarioFullURI, "the same, led to 169.254.170.23 as with EKS Pod Identity", playFullURI, learntFullURI},
	}
}

// containerFlag has the agent be the container credentials endpoint, too.
const containerFlag = "--container-credentials"

// strict are the scenarios of an agent with --imdsv1=false.
func strict() []scenario {
	return []scenario{
		{scenarioTokens, "tokens required: served as ever, and clients that know none find no credentials", playTokens, nil},
	}
}

// Bounds of a client that finds nothing. The most persistent one, the SDK for Ruby, asks 13 times in 7 s.
const (
	emptyHandedWithin   = 20 * time.Second
	emptyHandedRequests = 30
)

func playCredentials(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioCredentials, part{role: r.name})
	if err != nil {
		return "", err
	}
	return a.leave(a.findsItsRoleOnce(ctx))
}

// findsItsRoleOnce asks whose credentials there are, and compares what that took with what the client is known for.
func (a *actor) findsItsRoleOnce(ctx context.Context) error {
	if err := a.findsItsRole(ctx); err != nil {
		return err
	}
	if got := letters(a.wire.heard()); got != a.asks {
		return fmt.Errorf("got its role with the requests %s, want %s", got, a.asks)
	}
	return nil
}

// findsItsRole asks the client whose credentials it has found.
func (a *actor) findsItsRole(ctx context.Context) error {
	got, err := a.ask(ctx, "identity")
	if err != nil {
		return err
	}
	want := "credentials of role " + a.role
	switch {
	case got.Error != "" || got.Key == "" && got.ARN == "":
		return fmt.Errorf("want %s; it says %s", want, got)
	case got.ARN != "" && !strings.Contains(got.ARN, ":assumed-role/"+a.role+"/"):
		return fmt.Errorf("want %s; by its ARN it is somebody else: %s", want, got)
	case got.Key != "":
		return a.isOwnKey(got.Key)
	}
	return nil
}

// isOwnKey returns an error unless the access key ID is of a session of the pod's own role.
func (a *actor) isOwnKey(key string) error {
	session, known := a.stage.bed.AWS.LookupSession(key)
	switch want := roleARN(a.role); {
	case !known:
		return fmt.Errorf("the access key ID %q is of no session that AWS ever issued", key)
	case session.RoleARN != want:
		return fmt.Errorf("want credentials of %s, got those of %s", want, session.RoleARN)
	case !time.Now().Before(session.Expires):
		return fmt.Errorf("the credentials expired at %s", session.Expires)
	}
	return nil
}

func playRegion(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioRegion, part{role: r.name})
	if err != nil {
		return "", err
	}
	got, err := a.ask(ctx, "region")
	if err == nil && got.Region != testbed.Region {
		err = fmt.Errorf("want region %s; it says %s", testbed.Region, got)
	}
	return a.leave(err)
}

func playRole(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioRole, part{role: r.name})
	if err != nil {
		return "", err
	}
	return a.leave(a.asksForRoles(ctx))
}

func (a *actor) asksForRoles(ctx context.Context) error {
	const path = "get iam/security-credentials/"
	own, err := a.ask(ctx, path+a.role)
	if err != nil {
		return err
	}
	if own.Error != "" {
		return fmt.Errorf("want credentials for the own role's name; it says %s", own)
	}
	if err := a.isOwnKey(keyIn(own.Body)); err != nil {
		return err
	}
	other, err := a.ask(ctx, path+"somebody-else")
	if err != nil {
		return err
	}
	asked := a.wire.heard()
	last := asked[len(asked)-1]
	// Some clients return the body of an error, or nothing, as if it were an answer; credentials it must not be.
	if last.status != http.StatusNotFound || keyIn(other.Body) != "" {
		return fmt.Errorf("want 404 and no credentials for the name of another role; got %s; it says %s", last, other)
	}
	return nil
}

// keyIn returns the access key ID in the metadata service's answer, if that is what it is.
func keyIn(body string) string {
	var credentials struct {
		Key string `json:"AccessKeyId"`
	}
	if json.Unmarshal([]byte(body), &credentials) != nil {
		return ""
	}
	return credentials.Key
}

func playNoRole(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioNoRole, part{})
	if err != nil {
		return "", err
	}
	return a.leave(a.findsNothing(ctx))
}

// findsNothing asks whose credentials there are where there are none for this client.
func (a *actor) findsNothing(ctx context.Context) error {
	began := time.Now()
	got, err := a.ask(ctx, "identity")
	if err != nil {
		return err
	}
	switch took, requests := time.Since(began), len(a.wire.heard()); {
	case got.Error == "" || got.Key != "" || got.ARN != "":
		return fmt.Errorf("want no credentials; it says %s", got)
	case took > emptyHandedWithin:
		return fmt.Errorf("want no credentials within %s; it took %s", emptyHandedWithin, took)
	case requests > emptyHandedRequests:
		return fmt.Errorf("want no credentials after at most %d requests; it made %d", emptyHandedRequests, requests)
	}
	return nil
}

// coldFor is how long STS takes, which is less than any client waits and more than the first try of some.
const coldFor = 700 * time.Millisecond

// playCold holds the call to STS back until the client has asked for the first time, and for a while longer. The client
// comes when the call is on its way, so it meets a pod whose role is known and whose credentials are not there yet.
func playCold(ctx context.Context, s *stage, r ready) (string, error) {
	p := part{role: r.name + "-cold", minting: make(chan struct{}), latency: coldFor}
	a, err := s.enter(ctx, r, scenarioCold, p)
	if err != nil {
		return "", err
	}
	began := time.Now()
	err = a.findsItsRole(ctx)
	if took := time.Since(began); err == nil && took < coldFor {
		err = fmt.Errorf("this proves nothing: it had its role after %s, before STS had answered", took)
	}
	return a.leave(err)
}

// floor is what is left of a session at least when podrole serves it.
const floor = 25 * time.Minute

func playFloor(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioFloor, part{role: r.name + "-floor", life: floor})
	if err != nil {
		return "", err
	}
	const uses = 20
	for range uses {
		if err = a.findsItsRole(ctx); err != nil {
			break
		}
	}
	if got := letters(a.wire.heard()); err == nil && got != a.asks {
		err = fmt.Errorf("used credentials %d times, want the requests %s, got %s", uses, a.asks, got)
	}
	minted := s.bed.AWS.Count(awstest.Filter{Action: "AssumeRole", RoleARN: roleARN(a.role)})
	if err == nil && minted != 1 {
		err = fmt.Errorf("want one session minted, got %d", minted)
	}
	return a.leave(err)
}

func playTokens(ctx context.Context, s *stage, r ready) (string, error) {
	a, err := s.enter(ctx, r, scenarioTokens, part{role: r.name})
	if err != nil {
		return "", err
	}
	if r.tokens() {
		return a.leave(a.findsItsRoleOnce(ctx))
	}
	_, err = a.leave(a.findsNothing(ctx))
	return "refused", err
}

// relativeURI leads a client to the container credentials endpoint as ECS does.
func relativeURI() []string {
	return []string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/conformance"}
}

// fullURI leads a client there as EKS Pod Identity does.
func fullURI() []string {
	return []string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN=whatever",
	}
}

func playContainer(ctx context.Context, s *stage, r ready) (string, error) {
	return playEndpoint(ctx, s, r, scenarioContainer, relativeURI()...)
}

func playFullURI(ctx context.Context, s *stage, r ready) (string, error) {
	return playEndpoint(ctx, s, r, scenarioFullURI, fullURI()...)
}

func learntContainer(ctx context.Context, s *stage, r ready) error {
	return learntEndpoint(ctx, s, r, scenarioContainer, relativeURI()...)
}

func learntFullURI(ctx context.Context, s *stage, r ready) error {
	return learntEndpoint(ctx, s, r, scenarioFullURI, fullURI()...)
}

// learntEndpoint leads a client to the container credentials endpoint that is known not to go there. What it finds
// instead does not matter: some fall back to the metadata service, some refuse the address.
func learntEndpoint(ctx context.Context, s *stage, r ready, scenario string, variables ...string) error {
	a, err := s.enter(ctx, r, scenario, part{role: r.name, variables: variables})
	if err != nil {
		return err
	}
	said, err := a.ask(ctx, "identity")
	if err == nil {
		err = goesThere(a.wire.heard(), scenario, said)
	}
	_, err = a.leave(err)
	return err
}

// goesThere returns an error if a client has asked the container credentials endpoint, whatever came of it.
func goesThere(heard []exchange, scenario string, said answer) error {
	if strings.ContainsRune(letters(heard), letterContainer) {
		return fmt.Errorf("it is n/a, but goes there: take %q out of what this client lacks; it says %s", scenario, said)
	}
	return nil
}

// playEndpoint leads the client to the container credentials endpoint. It may still look for its region elsewhere.
func playEndpoint(ctx context.Context, s *stage, r ready, scenario string, variables ...string) (string, error) {
	a, err := s.enter(ctx, r, scenario, part{role: r.name, variables: variables})
	if err != nil {
		return "", err
	}
	err = a.findsItsRole(ctx)
	forRegion := strings.NewReplacer(string(letterToken), "", string(letterRegion), "")
	if got := letters(a.wire.heard()); err == nil && forRegion.Replace(got) != string(letterContainer) {
		err = fmt.Errorf("got its role with the requests %s, want one to the container credentials endpoint", got)
	}
	return a.leave(err)
}
