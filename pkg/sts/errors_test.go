package sts_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

func TestErrorText(t *testing.T) {
	cause := errors.New("Rate exceeded")
	tests := []struct {
		name string
		err  sts.Error
		want string
	}{
		{
			"full", sts.Error{sts.Throttled, "AssumeRole", "arn:role", "eu-west-1", "Throttling", cause, "call less"},
			"AssumeRole for arn:role in eu-west-1: Throttling (throttled): Rate exceeded; call less",
		},
		{
			"no_answer", sts.Error{sts.Transient, "AssumeRole", "arn:role", "eu-west-1", "", cause, ""},
			"AssumeRole for arn:role in eu-west-1: (transient): Rate exceeded",
		},
		{"bare", sts.Error{Kind: sts.Denied, Action: "TokenRequest", Err: cause}, "TokenRequest: (denied): Rate exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("Error() = %q, want %q", got, tt.want)
			}
			wrapped := fmt.Errorf("mint: %w", &tt.err)
			if sts.KindOf(wrapped) != tt.err.Kind || !errors.Is(wrapped, cause) {
				t.Error("kind or cause is lost by wrapping")
			}
		})
	}
	if sts.KindOf(errors.New("x")) != sts.Transient {
		t.Error("a foreign error is not transient")
	}
}

func TestCredentialsPrintNoSecret(t *testing.T) {
	c := sts.Credentials{
		AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: "very-secret", SessionToken: "token-secret", Expiration: time.Now(),
	}
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", "credentials", c)
	}
	fmt.Fprintf(&out, "%v %+v %#v %s %v %+v", c, c, c, c, &c, []sts.Credentials{c})
	if strings.Contains(out.String(), "secret") {
		t.Errorf("a secret in %s", out.String())
	}
	if !strings.Contains(out.String(), "ASIAEXAMPLE") {
		t.Error("no access key ID to find the session by")
	}
}
