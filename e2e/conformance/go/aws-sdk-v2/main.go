// The AWS SDK for Go, version 2, used in the way that its first releases and today's understand.
package main

import (
	"context"
	"io"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"podrole.io/conformance/talk"
)

func main() {
	ctx := context.Background()
	metadata := imds.New(imds.Options{})
	var cfg aws.Config
	var service *sts.Client
	load := func() error {
		var err error
		if cfg, err = config.LoadDefaultConfig(ctx, config.WithRegion(os.Args[2])); err != nil {
			return err
		}
		service = sts.NewFromConfig(cfg, func(o *sts.Options) { o.EndpointResolver = sts.EndpointResolverFromURL(os.Args[1]) })
		return nil
	}
	loaded := load()
	talk.Client{
		Version: aws.SDKVersion,
		Identity: func() (string, string, error) {
			if loaded != nil {
				return "", "", loaded
			}
			credentials, err := cfg.Credentials.Retrieve(ctx)
			if err != nil {
				return "", "", err
			}
			out, err := service.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
			if err != nil {
				return "", "", err
			}
			return credentials.AccessKeyID, *out.Arn, nil
		},
		Forget: func() {
			if cache, ok := cfg.Credentials.(interface{ Invalidate() }); ok {
				cache.Invalidate()
			} else {
				loaded = load()
			}
		},
		Region: func() (string, error) {
			out, err := metadata.GetRegion(ctx, nil)
			if err != nil {
				return "", err
			}
			return out.Region, nil
		},
		Get: func(path string) (string, error) {
			out, err := metadata.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
			if err != nil {
				return "", err
			}
			defer out.Content.Close()
			body, err := io.ReadAll(out.Content)
			return string(body), err
		},
	}.Run()
}
