package poll

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// patience is how long a metadata request may take: the one second of botocore.
const patience = time.Second

func imdsClient(cfg Config) func(context.Context) (string, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://169.254.169.254/latest/meta-data/iam/security-credentials/" + cfg.Role
	return func(ctx context.Context) (string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		response, err := client.Do(request)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return "", fmt.Errorf("status %s", response.Status)
		}
		var body struct {
			AccessKeyID string `json:"AccessKeyId"`
			Expiration  time.Time
		}
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			return "", fmt.Errorf("read credentials: %w", err)
		}
		if !time.Now().Before(body.Expiration) {
			return "", fmt.Errorf("credentials expired at %s", body.Expiration)
		}
		return body.AccessKeyID, nil
	}
}

func inlineClient(cfg Config) func(context.Context) (string, error) {
	client := sts.New(sts.Options{Region: cfg.Region, BaseEndpoint: &cfg.STS})
	provider := stscreds.NewWebIdentityRoleProvider(client, cfg.Role, stscreds.IdentityTokenFile(cfg.Token))
	cache := aws.NewCredentialsCache(provider)
	return func(ctx context.Context) (string, error) {
		credentials, err := cache.Retrieve(ctx)
		return credentials.AccessKeyID, err
	}
}
