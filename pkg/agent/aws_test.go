package agent

import "testing"

func TestBaseOfProfile(t *testing.T) {
	for profile, want := range map[string]string{
		"arn:aws:iam::111122223333:instance-profile/node":            "arn:aws:iam::111122223333:role/",
		"arn:aws-cn:iam::111122223333:instance-profile/path/to/node": "arn:aws-cn:iam::111122223333:role/",
		"arn:aws:iam::111122223333:role/node":                        "",
		"":                                                           "",
	} {
		if got, err := baseOfProfile(profile); got != want || (err == nil) != (want != "") {
			t.Errorf("baseOfProfile(%q) = %q, %v; want %q", profile, got, err, want)
		}
	}
}
