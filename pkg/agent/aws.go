package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// upstreamTimeout bounds what is asked of the node's own metadata service in one go.
const upstreamTimeout = 5 * time.Second

// httpClient makes all calls outside the cluster. Proxies come from the environment, but never for the metadata service.
func httpClient(cfg config.Config) *http.Client {
	return sts.NewHTTPClient(cfg.Metadata.Address, cfg.Metadata.AddressIPv6)
}

// nodeMetadata is a client of the node's own metadata service. It tries once: whoever uses it tries again, and knows better
// when.
func nodeMetadata(cfg config.Config) *imds.Client {
	return imds.New(imds.Options{
		Endpoint:   "http://" + netip.AddrPortFrom(cfg.Metadata.Address, 80).String(),
		HTTPClient: httpClient(cfg),
		Retryer:    aws.NopRetryer{},
	})
}

// ownAWS is the agent's own AWS configuration: credentials from the environment, files or the node's metadata service,
// as every SDK finds them, and the region.
func ownAWS(ctx context.Context, cfg config.Config) (aws.Config, error) {
	own, err := awsconfig.LoadDefaultConfig(ctx,
		awsconfig.WithRegion(cfg.STS.Region),
		awsconfig.WithHTTPClient(httpClient(cfg)),
		awsconfig.WithEC2IMDSEndpoint("http://"+netip.AddrPortFrom(cfg.Metadata.Address, 80).String()))
	if err != nil {
		return aws.Config{}, fmt.Errorf("load AWS configuration: %w", err)
	}
	if own.Region != "" {
		return own, nil
	}
	if !cfg.Metadata.Upstream {
		return aws.Config{}, errors.New("the AWS region is unknown: set --sts-region, or let --metadata-upstream find it")
	}
	own.Region, err = discoverRegion(ctx, nodeMetadata(cfg))
	return own, err
}

// discoveryAttempts bounds how often the metadata service of a node that is still starting is asked.
const discoveryAttempts = 6

// discover asks the node's metadata service until it answers.
func discover[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	var answer T
	var err error
	for n := range discoveryAttempts {
		if n > 0 {
			select {
			case <-ctx.Done():
				return answer, ctx.Err()
			case <-time.After(time.Second):
			}
		}
		attempt, cancel := context.WithTimeout(ctx, upstreamTimeout)
		answer, err = ask(attempt)
		cancel()
		if err == nil {
			return answer, nil
		}
	}
	return answer, err
}

func discoverRegion(ctx context.Context, client *imds.Client) (string, error) {
	found, err := discover(ctx, func(ctx context.Context) (*imds.GetRegionOutput, error) {
		return client.GetRegion(ctx, &imds.GetRegionInput{})
	})
	if err != nil {
		return "", fmt.Errorf("the AWS region is unknown: set --sts-region (the node's metadata service does not say: %w)", err)
	}
	return found.Region, nil
}

// discoverBaseARN returns what stands before the names of roles in the account of the node's instance profile.
func discoverBaseARN(ctx context.Context, client *imds.Client) (string, error) {
	found, err := discover(ctx, func(ctx context.Context) (*imds.GetIAMInfoOutput, error) {
		return client.GetIAMInfo(ctx, &imds.GetIAMInfoInput{})
	})
	if err != nil {
		return "", fmt.Errorf("the account of the node is unknown: set --base-role-arn (its metadata service does not say: %w)", err)
	}
	base, err := baseOfProfile(found.InstanceProfileArn)
	if err != nil {
		return "", fmt.Errorf("read the node's instance profile: %w; set --base-role-arn", err)
	}
	return base, nil
}

// baseOfProfile turns arn:aws:iam::ACCOUNT:instance-profile/NAME into arn:aws:iam::ACCOUNT:role/.
func baseOfProfile(profile string) (string, error) {
	account, _, found := strings.Cut(profile, ":instance-profile/")
	if !found {
		return "", fmt.Errorf("%q is not the ARN of an instance profile", profile)
	}
	return role.ParseBaseARN(account + ":role/")
}

// answersIMDSv1 reports whether the node's metadata service answers without a token: then pods that a fault lets past the
// redirect can have the node's role by the simplest of requests.
func answersIMDSv1(ctx context.Context, client *http.Client, address netip.Addr) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	url := "http://" + netip.AddrPortFrom(address, 80).String() + "/latest/meta-data/"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, fmt.Errorf("ask the node's metadata service: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return false, fmt.Errorf("ask the node's metadata service: %w", err)
	}
	return response.StatusCode == http.StatusOK, response.Body.Close()
}

// warnOfIMDSv1 says once what the instance should be set to.
func warnOfIMDSv1(ctx context.Context, cfg config.Config, logger *slog.Logger) {
	answers, err := answersIMDSv1(ctx, httpClient(cfg), cfg.Metadata.Address)
	switch {
	case err != nil:
		logger.Debug("whether the instance requires IMDSv2 is not known", "error", err)
	case answers:
		logger.Warn("the instance answers IMDSv1: require IMDSv2 with a hop limit of 1, which pods cannot get past even without podrole",
			"remedy", "aws ec2 modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 1")
	}
}
