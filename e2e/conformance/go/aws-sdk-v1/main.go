// The AWS SDK for Go, version 1, used in the way that all its releases understand.
package main

import (
	"os"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/ec2metadata"
	"github.com/aws/aws-sdk-go/aws/request"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/sts"

	"podrole.io/conformance/talk"
)

func main() {
	s := session.New() // what came after it is unknown to 1.0.0
	metadata := ec2metadata.New(s)
	service := sts.New(s, &aws.Config{Region: aws.String(os.Args[2]), Endpoint: aws.String(os.Args[1])})
	talk.Client{
		Version: aws.SDKVersion,
		Identity: func() (string, string, error) {
			credentials, err := s.Config.Credentials.Get()
			if err != nil {
				return "", "", err
			}
			arn, err := callerIdentity(service)
			return credentials.AccessKeyID, arn, err
		},
		Forget: s.Config.Credentials.Expire,
		Region: metadata.Region,
		Get:    metadata.GetMetadata,
	}.Run()
}

// callerIdentity calls STS's GetCallerIdentity, an action that is younger than 1.0.0.
func callerIdentity(service *sts.STS) (string, error) {
	type (
		input struct {
			_ struct{} `type:"structure"`
		}
		output struct {
			_   struct{} `type:"structure"`
			Arn *string  `type:"string"`
		}
	)
	action := &request.Operation{Name: "GetCallerIdentity", HTTPMethod: "POST", HTTPPath: "/"}
	var out output
	if err := service.NewRequest(action, &input{}, &out).Send(); err != nil {
		return "", err
	}
	return aws.StringValue(out.Arn), nil
}
