// Package ask is how a pod asks for credentials, and what it reports: the same in the pod's program and in what reads
// the report.
package ask

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// patience is how long one request may take, with one try each: botocore's defaults
// (https://boto3.amazonaws.com/v1/documentation/api/latest/guide/configuration.html, metadata_service_timeout).
const patience = time.Second

// metadata is the metadata service as every SDK has it built in.
const metadata = "http://169.254.169.254"

// Outcome is what became of one attempt to get credentials.
type Outcome struct {
	Began time.Time
	Took  time.Duration
	Step  string `json:",omitempty"` // that failed: token, role or credentials
	Error string `json:",omitempty"` // empty if it succeeded
	// Status is that of the last request's answer, and 0 if there was none.
	Status int `json:",omitempty"`

	Role        string // name, as the metadata service lists it
	AccessKeyID string
	Expiration  time.Time
}

// Final says that the attempt failed by an answer that SDKs take for good. They try again when there is none, and after
// status 503, which they take for a fault of the moment.
func (o Outcome) Final() bool {
	return o.Error != "" && o.Status != 0 && o.Status != http.StatusServiceUnavailable
}

// Load is what became of one attempt after another.
type Load struct {
	Began    time.Time
	Every    time.Duration // from one attempt to the next; 0 if there are none
	Requests int
	Slowest  time.Duration
	Failures []Outcome // the first ones; at most 100
	Failed   int
	Final    []Outcome // failures that are; at most 100
	Keys     []string  // access key IDs seen, in order
}

// Due is how many attempts have begun by now, if the pod gets the processor as often as it should.
func (l Load) Due(now time.Time) int {
	if l.Every <= 0 {
		return 0
	}
	return int(now.Sub(l.Began) / l.Every)
}

// Credentials gets credentials as SDKs do: a session token, the name of the role, its credentials. It tries once.
func Credentials(ctx context.Context) Outcome {
	o := Outcome{Began: time.Now()}
	// SDKs connect anew for each request, for the real service closes every connection.
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	err := o.get(ctx, client)
	o.Took = time.Since(o.Began)
	if err != nil {
		o.Error = err.Error()
	} else {
		o.Step = ""
	}
	return o
}

func (o *Outcome) get(ctx context.Context, client *http.Client) error {
	o.Step = "token"
	token, err := o.request(ctx, client, http.MethodPut, "/latest/api/token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
	if err != nil {
		return err
	}
	o.Step = "role"
	const path = "/latest/meta-data/iam/security-credentials/"
	role, err := o.request(ctx, client, http.MethodGet, path, "X-Aws-Ec2-Metadata-Token", token)
	if err != nil {
		return err
	}
	o.Role, _, _ = strings.Cut(role, "\n")
	o.Step = "credentials"
	text, err := o.request(ctx, client, http.MethodGet, path+o.Role, "X-Aws-Ec2-Metadata-Token", token)
	if err != nil {
		return err
	}
	var body struct {
		AccessKeyID string `json:"AccessKeyId"`
		Expiration  time.Time
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		return fmt.Errorf("read credentials: %w", err)
	}
	if body.AccessKeyID == "" || !time.Now().Before(body.Expiration) {
		return errors.New("no key, or one that has expired")
	}
	o.AccessKeyID, o.Expiration = body.AccessKeyID, body.Expiration
	return nil
}

func (o *Outcome) request(ctx context.Context, client *http.Client, method, path, header, value string) (string, error) {
	o.Status = 0
	r, err := http.NewRequestWithContext(ctx, method, metadata+path, nil)
	if err != nil {
		return "", err
	}
	r.Header.Set(header, value)
	response, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return "", err
	}
	o.Status = response.StatusCode
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", response.Status)
	}
	return string(text), nil
}
