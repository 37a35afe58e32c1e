package telemetry_test

import (
	"io"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/podrole/podrole/pkg/telemetry"
)

// scrape exercises every instrument and returns what Prometheus would read.
func scrape(t *testing.T) string {
	t.Helper()
	m, err := telemetry.New(telemetry.Config{
		Sessions: func(yield func(telemetry.SessionLife) bool) {
			_ = yield(telemetry.SessionLife{Namespace: "shop", ServiceAccount: "orders", Left: 40 * time.Minute}) &&
				yield(telemetry.SessionLife{Namespace: "shop", ServiceAccount: "orders", Left: 30 * time.Minute})
		},
		DeniedPods: func() map[string]int { return map[string]int{"no-role": 2} },
		KeptPods:   func() int { return 1 },
		Adopted:    func() int { return 6 },
		Owner:      func() bool { return true },
		Bypassing:  func() int { return 3 },
		WatchAge:   func() time.Duration { return 4 * time.Second },
		CNIResults: func() map[string]int { return map[string]int{"stale": 5} },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Shutdown(t.Context()) })
	m.Served("credentials", 200, time.Millisecond)
	m.Served("credentials", 200, time.Millisecond)
	m.STSCalled("AssumeRole", "eu-west-1", "OK", time.Second)
	m.Minted("ok")
	m.Denied("no-role")
	m.RedirectChecked(true, true)

	recorder := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(recorder.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestSeries(t *testing.T) {
	text := scrape(t)
	for _, want := range []string{
		`podrole_imds_request_duration_seconds_count{code="200",route="credentials"} 2`,
		`podrole_sts_request_duration_seconds_count{action="AssumeRole",code="OK",region="eu-west-1"} 1`,
		`podrole_session_time_to_expiry_seconds{namespace="shop",service_account="orders"} 1800`,
		`podrole_session_mints_total{result="ok"} 1`,
		`podrole_denials_total{reason="no-role"} 1`,
		`podrole_pods_denied{reason="no-role"} 2`,
		`podrole_pods_kept 1`,
		`podrole_pods_adopted 6`,
		`podrole_redirect_owner 1`,
		`podrole_pods_bypassing 3`,
		`podrole_watch_age_seconds 4`,
		`podrole_cni_results{verdict="stale"} 5`,
		`podrole_redirect_repairs_total 1`,
		`podrole_redirect_intact 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no series %s in\n%s", want, text)
		}
	}
}

func TestNamesFollowPrometheusConventions(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestLabelsAreBounded: a label that names a pod or an address would grow with the cluster's churn.
func TestLabelsAreBounded(t *testing.T) {
	allowed := []string{
		telemetry.KeyRoute, telemetry.KeyCode, telemetry.KeyAction, telemetry.KeyRegion, telemetry.KeyReason,
		telemetry.KeyResult, telemetry.KeyVerdict, telemetry.KeyNamespace, telemetry.KeyServiceAccount, "le", "quantile", "version",
		"service_name", "telemetry_sdk_language", "telemetry_sdk_name", "telemetry_sdk_version", // of target_info
	}
	for _, match := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(scrape(t), -1) {
		if !slices.Contains(allowed, match[1]) {
			t.Errorf("label %q is not one of the bounded ones", match[1])
		}
	}
}

func BenchmarkServed(b *testing.B) {
	m, err := telemetry.New(telemetry.Config{
		Sessions:   func(func(telemetry.SessionLife) bool) {},
		DeniedPods: func() map[string]int { return nil },
		KeptPods:   func() int { return 0 },
		Adopted:    func() int { return 0 },
		Owner:      func() bool { return false },
		Bypassing:  func() int { return 0 },
		WatchAge:   func() time.Duration { return 0 },
		CNIResults: func() map[string]int { return nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Served("credentials", 200, time.Millisecond)
	}
}
