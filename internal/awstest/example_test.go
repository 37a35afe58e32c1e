package awstest_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/podrole/podrole/internal/awstest"
)

// A node role that may assume one role of a pod, STS in one region, and an hour asked that lasts twelve seconds.
func Example() {
	const node, app = "arn:aws:iam::111122223333:role/node", "arn:aws:iam::111122223333:role/app"
	stand, err := awstest.New(awstest.Config{SessionLifetime: awstest.ScaleLifetime(300)})
	if err != nil {
		log.Fatal(err)
	}
	for _, role := range []awstest.Role{
		{ARN: node, Trust: awstest.TrustService("ec2.amazonaws.com")},
		{ARN: app, Trust: awstest.TrustPrincipals(node)},
	} {
		if err := stand.PutRole(role); err != nil {
			log.Fatal(err)
		}
	}
	once := awstest.Fault{Action: "AssumeRole", RoleARN: app, Outcome: awstest.Throttled(), Times: 1}
	if _, err := stand.Inject(once); err != nil {
		log.Fatal(err)
	}
	endpoint := httptest.NewServer(stand.Endpoint("eu-west-1"))
	defer endpoint.Close()

	keys, err := stand.Issue(node, "i-0123456789abcdef0", time.Hour)
	if err != nil {
		log.Fatal(err)
	}
	client := sts.New(sts.Options{
		Region: "eu-west-1", BaseEndpoint: &endpoint.URL, Retryer: aws.NopRetryer{},
		Credentials: credentials.StaticCredentialsProvider{Value: keys},
	})
	for range 2 {
		out, err := client.AssumeRole(context.Background(),
			&sts.AssumeRoleInput{RoleArn: new(app), RoleSessionName: new("pod")})
		if err != nil {
			continue
		}
		session, _ := stand.LookupSession(*out.Credentials.AccessKeyId)
		fmt.Println(session.AssumedRoleARN, session.Expires.Sub(session.Issued) <= 12*time.Second)
	}
	for _, call := range stand.Calls(awstest.Filter{Action: "AssumeRole"}) {
		fmt.Println(call.Region, call.RoleARN, call.Code, call.Status)
	}
	// Output:
	// arn:aws:sts::111122223333:assumed-role/app/pod true
	// eu-west-1 arn:aws:iam::111122223333:role/app Throttling 400
	// eu-west-1 arn:aws:iam::111122223333:role/app OK 200
}
