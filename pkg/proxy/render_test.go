package proxy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

func TestRenderCredentials(t *testing.T) {
	// Neither a fraction of a second nor a zone may show: boto2 and old Common Runtimes fail on both.
	zone := time.FixedZone("elsewhere", 2*3600)
	c := sts.Credentials{
		AccessKeyID:     "ASIAIOSFODNN7EXAMPLE",
		SecretAccessKey: testSecret,
		SessionToken:    testSessionToken,
		Expiration:      time.Date(2026, 3, 1, 15, 0, 0, 999999999, zone),
	}
	got := string(RenderCredentials(c, time.Date(2026, 3, 1, 14, 0, 0, 1, zone)))
	if got != credentialsBody {
		t.Errorf("got\n%s\nwant\n%s", got, credentialsBody)
	}
}

func TestRenderEscapes(t *testing.T) {
	c := sts.Credentials{SessionToken: "quote\" backslash\\ newline\n <&> \u2028 é"}
	var back struct{ Token string }
	body := RenderCredentials(c, testStart)
	if err := json.Unmarshal(body, &back); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if back.Token != c.SessionToken {
		t.Errorf("token came back as %q, want %q", back.Token, c.SessionToken)
	}
	if !strings.Contains(string(body), "<&>") {
		t.Errorf("characters are escaped that need not be: %s", body)
	}
}

func TestWithAccountID(t *testing.T) {
	for arn, want := range map[string]string{
		"arn:aws:sts::123456789012:assumed-role/web/session":    "123456789012",
		"arn:aws-cn:sts::000000000000:assumed-role/web/session": "000000000000",
		"":                     "",
		"arn:aws:sts":          "",
		"x:y:z::1234:resource": "",
	} {
		plain := RenderCredentials(sts.Credentials{}, testStart)
		body := withAccountID(plain, arn)
		var back struct{ Code, AccountId string }
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		if back.AccountId != want || back.Code != "Success" {
			t.Errorf("of %q: account %q, want %q", arn, back.AccountId, want)
		}
		if string(plain) != string(RenderCredentials(sts.Credentials{}, testStart)) {
			t.Error("the plain body has been changed")
		}
	}
}

func TestRenderInfo(t *testing.T) {
	var a, b struct{ Code, InstanceProfileArn, InstanceProfileId string }
	for into, arn := range map[any]string{
		&a: "arn:aws-us-gov:iam::123456789012:role/path/web",
		&b: "arn:aws:iam::123456789012:role/role/x",
	} {
		if err := json.Unmarshal(renderInfo(arn, testStart), into); err != nil {
			t.Fatal(err)
		}
	}
	if a.InstanceProfileArn != "arn:aws-us-gov:iam::123456789012:instance-profile/path/web" || a.Code != "Success" {
		t.Errorf("info is %+v", a)
	}
	if b.InstanceProfileArn != "arn:aws:iam::123456789012:instance-profile/role/x" {
		t.Errorf("info is %+v", b)
	}
	if len(a.InstanceProfileId) != 21 || a.InstanceProfileId == b.InstanceProfileId {
		t.Errorf("profile IDs %q and %q", a.InstanceProfileId, b.InstanceProfileId)
	}
}
