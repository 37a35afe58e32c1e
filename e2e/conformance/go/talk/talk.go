// Package talk is the conversation between a client and the conformance suite: a client says on standard output which
// version of its SDK it is, then answers the commands that come on standard input, each answer one line of JSON, until
// the input ends. The clients in other languages speak the same.
//
//	identity   whose credentials the SDK's default chain finds: the access key ID and, where the SDK can ask STS, the ARN
//	forget     forget the credentials, so that the next identity reads them anew; session tokens may be kept
//	region     the region, as the SDK finds it in the metadata service
//	get PATH   the body of a path below /latest/meta-data/
package talk

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
)

// Answer is one line. Error is set when what was asked could not be done.
type Answer struct {
	Version string `json:"version,omitempty"`
	Key     string `json:"key,omitempty"`
	ARN     string `json:"arn,omitempty"`
	Region  string `json:"region,omitempty"`
	Body    string `json:"body,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Client is what a client can do. A function that is nil it cannot.
type Client struct {
	Version  string
	Identity func() (key, arn string, err error)
	Forget   func()
	Region   func() (string, error)
	Get      func(path string) (string, error)
}

// Run answers commands until there are no more.
func (c Client) Run() {
	out := json.NewEncoder(os.Stdout)
	say := func(a Answer, err error) {
		if err != nil {
			a = Answer{Error: err.Error()}
		}
		if err := out.Encode(a); err != nil {
			os.Exit(1) // nobody listens
		}
	}
	say(Answer{Version: c.Version}, nil)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		command, argument, _ := strings.Cut(in.Text(), " ")
		var a Answer
		var err error
		switch {
		case command == "identity" && c.Identity != nil:
			a.Key, a.ARN, err = c.Identity()
		case command == "forget" && c.Forget != nil:
			c.Forget()
		case command == "region" && c.Region != nil:
			a.Region, err = c.Region()
		case command == "get" && c.Get != nil:
			a.Body, err = c.Get(argument)
		default:
			a.Error = "not understood: " + command
		}
		say(a, err)
	}
}
