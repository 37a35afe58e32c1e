package main

import (
	"fmt"
	"path"
)

// client is an SDK or a program in one release, and what is known of it.
type client struct {
	name    string
	version string // that it must say it is; empty for whatever the distribution has
	kit     kit    // how it is installed
	// asks is what it asks the metadata service for on the way to its first credentials, in the letters of
	// [exchange.letter]. A client that asks for more has met something it did not expect, even if it copes.
	asks string
	// lacks says, by scenario, why the scenario has no meaning for this client.
	lacks map[string]string
}

// tokens reports whether the client knows IMDSv2.
func (c client) tokens() bool { return c.asks[0] == 'T' }

// mayLearn reports whether the next release may be another without anybody having said so here.
func (c client) mayLearn() bool { return c.version == "" }

// Why a scenario is n/a.
const (
	noRegion  = "has no finder of regions"
	noPath    = "lets nobody choose the path: it asks for the role that the list names"
	noToken   = "is older than IMDSv2 and knows no token"
	noProcess = "is a new process with each call"
	// Before 2016, with the first of them.
	noContainer = "is older than the container credentials endpoint"
	// Before 2023, as a rule.
	noFullURI = "takes no other address of the container credentials endpoint than that of ECS"
)

// lacking returns the scenarios that are n/a for these reasons.
func lacking(reasons ...string) map[string]string {
	of := map[string]string{
		noRegion: scenarioRegion, noPath: scenarioRole, noToken: scenarioRestart, noProcess: scenarioFloor,
		noContainer: scenarioContainer, noFullURI: scenarioFullURI,
	}
	lacks := map[string]string{}
	for _, reason := range reasons {
		lacks[of[reason]] = reason
		if reason == noContainer {
			lacks[scenarioFullURI] = reason
		}
	}
	return lacks
}

// clients lists all, oldest first within an ecosystem. The releases are those at which a client's way of asking
// changed, or the latest of a line.
func clients() []client {
	v1, v2, minio := goKit("aws-sdk-v1"), goKit("aws-sdk-v2"), goKit("minio")
	return []client{
		// No slash behind the role list; follows redirects.
		{name: "aws-sdk-go-1.0.0", version: "1.0.0", kit: v1, asks: "LC", lacks: lacking(noToken, noContainer)},
		{name: "aws-sdk-go-1.12.0", version: "1.12.0", kit: v1, asks: "LC", lacks: lacking(noToken, noFullURI)},
		// The last one before IMDSv2, and the first one with it.
		{name: "aws-sdk-go-1.25.37", version: "1.25.37", kit: v1, asks: "LC", lacks: lacking(noToken, noFullURI)},
		{name: "aws-sdk-go-1.25.38", version: "1.25.38", kit: v1, asks: "TLC", lacks: lacking(noFullURI)},
		{name: "aws-sdk-go-1.44.133", version: "1.44.133", kit: v1, asks: "TLC", lacks: lacking(noFullURI)},
		{name: "aws-sdk-go-1.55.8", version: "1.55.8", kit: v1, asks: "TLC"}, // the last one
		{name: "aws-sdk-go-v2-2021", version: "1.2.0", kit: v2, asks: "TLC", lacks: lacking(noFullURI)},
		{name: "aws-sdk-go-v2", version: "1.47.7", kit: v2, asks: "TLC"},
		// Its own reader, without any fallback to IMDSv1.
		{name: "minio-go-7.0.50", version: "7.0.50", kit: minio, asks: "TLC", lacks: lacking(noRegion, noPath, noFullURI)},
		{name: "minio-go", version: "7.4.1", kit: minio, asks: "TLC", lacks: lacking(noRegion, noPath, noFullURI)},

		// Takes whatever body it gets, whatever the status.
		{name: "aws-sdk-js-2.3.0", version: "2.3.0", kit: npmKit("aws-sdk-v2.js"), asks: "LC", lacks: lacking(noToken, noContainer)},
		{name: "aws-sdk-js-2.574.0", version: "2.574.0", kit: npmKit("aws-sdk-v2.js"), asks: "LC", lacks: lacking(noToken, noFullURI)},
		{name: "aws-sdk-js-2.1692.0", version: "2.1692.0", kit: npmKit("aws-sdk-v2.js"), asks: "TLC"},
		{name: "aws-sdk-js-3", version: "3.1169.0", kit: npmKit("aws-sdk-v3.js"), asks: "TLC"},
		// Sends no Host header.
		{name: "aws-crt-1.15.7", version: "1.15.7", kit: npmKit("aws-crt.js"), asks: "TLC", lacks: lacking(noRegion, noPath)},
		{name: "aws-crt", version: "1.33.2", kit: npmKit("aws-crt.js"), asks: "TLC", lacks: lacking(noRegion, noPath)},

		// Reads an Expiration of one form only.
		{name: "boto-2", kit: pythonKit("boto2.py", "python3-boto"), asks: "LC", lacks: lacking(noToken, noContainer)},
		{name: "boto3", kit: pythonKit("botocore_boto3.py", "python3-boto3"), asks: "TLC", lacks: lacking(noPath, noFullURI)},
		{name: "python-awscrt", kit: pythonKit("crt.py", "python3-awscrt"), asks: "TLC", lacks: lacking(noRegion, noPath)},
		{name: "aws-cli", kit: shellKit("aws-cli", "awscli"), asks: "TRTLC", lacks: lacking(noPath, noProcess, noFullURI)},

		{name: "aws-sdk-ruby-1", kit: rubyKit("aws_sdk_v1.rb", "ruby-aws-sdk"), asks: "LC", lacks: lacking(noToken, noRegion, noPath, noContainer)},
		{name: "aws-sdk-ruby-3", kit: rubyKit("aws_sdk_v3.rb", "ruby-aws-sdk-core"), asks: "TLC", lacks: lacking(noFullURI)},
		{name: "fog-aws", kit: rubyKit("fog_aws.rb", "ruby-fog-aws"), asks: "TLCR", lacks: lacking(noPath, noFullURI)},
	}
}

// choose returns the clients whose name matches glob.
func choose(glob string) ([]client, error) {
	var chosen []client
	for _, c := range clients() {
		matches, err := path.Match(glob, c.name)
		if err != nil {
			return nil, fmt.Errorf("read glob %q: %w", glob, err)
		}
		if matches {
			chosen = append(chosen, c)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no client is called %q", glob)
	}
	return chosen, nil
}
