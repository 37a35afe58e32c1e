// Package telemetry is what an operator and a pod's owner can see of an agent: OpenTelemetry metrics, in Prometheus' format
// over HTTP, and Kubernetes Events.
//
// Every label has a bounded set of values. No label names a client's address, a pod or a UID: a metric must not grow
// with the churn of a cluster, and must not tell who talked to whom.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
)

// Names of the instruments, as OpenTelemetry has them. Prometheus sees them with underscores and the unit behind.
const (
	RequestDuration     = "podrole.imds.request.duration"
	STSDuration         = "podrole.sts.request.duration"
	SessionTimeToExpiry = "podrole.session.time_to_expiry"
	SessionMints        = "podrole.session.mints"
	Denials             = "podrole.denials"
	PodsDenied          = "podrole.pods.denied"
	PodsKept            = "podrole.pods.kept"
	PodsAdopted         = "podrole.pods.adopted"
	PodsBypassing       = "podrole.pods.bypassing"
	WatchAge            = "podrole.watch.age"
	CNIResults          = "podrole.cni.results"
	RedirectRepairs     = "podrole.redirect.repairs"
	RedirectIntact      = "podrole.redirect.intact"
	RedirectOwner       = "podrole.redirect.owner"
)

// Keys of the attributes.
const (
	KeyRoute          = "route"
	KeyCode           = "code"
	KeyAction         = "action"
	KeyRegion         = "region"
	KeyReason         = "reason"
	KeyResult         = "result"
	KeyVerdict        = "verdict"
	KeyNamespace      = "namespace"
	KeyServiceAccount = "service_account"
)

// SessionLife is how long one session has left.
type SessionLife struct {
	Namespace      string
	ServiceAccount string
	Left           time.Duration
}

// Config says where gauges are read from. The functions are called at each scrape, concurrently with everything else.
type Config struct {
	Sessions   func(yield func(SessionLife) bool) // required
	DeniedPods func() map[string]int              // required: live pods without a role, by reason
	KeptPods   func() int                         // required: live pods whose role outlives an edit that cannot be read
	Adopted    func() int                         // required: live pods served by what the agent before decided
	Bypassing  func() int                         // required: live pods with a role whose SDKs are led elsewhere
	WatchAge   func() time.Duration               // required: since the watch of pods was last heard of
	Owner      func() bool                        // required: whether the redirect is this agent's
	CNIResults func() map[string]int              // required: files with results of CNI plugins, by what they are good for
}

// Metrics are the instruments. All methods are safe for concurrent use.
type Metrics struct {
	provider *sdk.MeterProvider
	registry *prometheus.Registry

	requests metric.Float64Histogram
	sts      metric.Float64Histogram
	mints    metric.Int64Counter
	denials  metric.Int64Counter
	repairs  metric.Int64Counter
	intact   metric.Int64Gauge

	mu       sync.RWMutex // guards prepared
	prepared map[servedLabels][]metric.RecordOption
}

// New returns Metrics with a registry of their own.
func New(cfg Config) (*Metrics, error) {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		prepared: make(map[servedLabels][]metric.RecordOption),
	}
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(m.registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("make prometheus exporter: %w", err)
	}
	// Of the process itself: memory, descriptors, goroutines.
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.provider = sdk.NewMeterProvider(sdk.WithReader(exporter))
	meter := m.provider.Meter("github.com/podrole/podrole")
	if err := m.instruments(meter); err != nil {
		return nil, err
	}
	if err := gauges(meter, cfg); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Metrics) instruments(meter metric.Meter) error {
	var errs [6]error
	m.requests, errs[0] = meter.Float64Histogram(RequestDuration, metric.WithUnit("s"),
		metric.WithDescription("Time to answer a pod's metadata request, by route and status code."),
		metric.WithExplicitBucketBoundaries(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, .9, 1.5))
	m.sts, errs[1] = meter.Float64Histogram(STSDuration, metric.WithUnit("s"),
		metric.WithDescription("Time of calls to AWS STS, by action, region and error code."),
		metric.WithExplicitBucketBoundaries(.025, .05, .1, .2, .4, .8, 1.5, 3, 5, 10))
	m.mints, errs[2] = meter.Int64Counter(SessionMints,
		metric.WithDescription("Attempts to mint a session, by result."))
	m.denials, errs[3] = meter.Int64Counter(Denials,
		metric.WithDescription("Decisions that deny a pod its role, by reason."))
	m.repairs, errs[4] = meter.Int64Counter(RedirectRepairs,
		metric.WithDescription("Times that rules, guard or address were found changed and put right."))
	m.intact, errs[5] = meter.Int64Gauge(RedirectIntact,
		metric.WithDescription("1 while rules, guard and address were as they should be when last looked at, else 0."))
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("make instruments: %w", err)
	}
	return nil
}

func gauges(meter metric.Meter, cfg Config) error {
	expiry, err := meter.Float64ObservableGauge(SessionTimeToExpiry, metric.WithUnit("s"),
		metric.WithDescription("Time left of a ServiceAccount's session; the shortest, where it has several."))
	if err != nil {
		return fmt.Errorf("make session gauge: %w", err)
	}
	denied, err := meter.Int64ObservableGauge(PodsDenied,
		metric.WithDescription("Pods on this node that may use no role, by reason."))
	if err != nil {
		return fmt.Errorf("make denied pods gauge: %w", err)
	}
	adopted, err := meter.Int64ObservableGauge(PodsAdopted,
		metric.WithDescription("Pods on this node served by what an earlier agent decided, as the API server cannot be reached."))
	if err != nil {
		return fmt.Errorf("make adopted pods gauge: %w", err)
	}
	kept, err := meter.Int64ObservableGauge(PodsKept,
		metric.WithDescription("Pods on this node that keep a role in spite of an annotation that cannot be read."))
	if err != nil {
		return fmt.Errorf("make kept pods gauge: %w", err)
	}
	bypassing, err := meter.Int64ObservableGauge(PodsBypassing,
		metric.WithDescription("Pods on this node that have a role here and whose environment leads SDKs elsewhere for credentials."))
	if err != nil {
		return fmt.Errorf("make bypassing pods gauge: %w", err)
	}
	age, err := meter.Float64ObservableGauge(WatchAge, metric.WithUnit("s"),
		metric.WithDescription("Time since the API server's watch of this node's pods was last heard of."))
	if err != nil {
		return fmt.Errorf("make watch age gauge: %w", err)
	}
	owner, err := meter.Int64ObservableGauge(RedirectOwner,
		metric.WithDescription("1 while the redirect leads pods to this agent, 0 while it stands by for another one."))
	if err != nil {
		return fmt.Errorf("make owner gauge: %w", err)
	}
	results, err := meter.Int64ObservableGauge(CNIResults,
		metric.WithDescription("Files with results of CNI plugins on this node, by verdict: counted ones identify pods."))
	if err != nil {
		return fmt.Errorf("make CNI results gauge: %w", err)
	}
	observe := func(_ context.Context, o metric.Observer) error {
		type account struct{ namespace, name string }
		shortest := make(map[account]time.Duration)
		for s := range cfg.Sessions {
			a := account{s.Namespace, s.ServiceAccount}
			if left, ok := shortest[a]; !ok || s.Left < left {
				shortest[a] = s.Left
			}
		}
		for a, left := range shortest {
			o.ObserveFloat64(expiry, left.Seconds(), metric.WithAttributes(
				attribute.String(KeyNamespace, a.namespace), attribute.String(KeyServiceAccount, a.name)))
		}
		for reason, n := range cfg.DeniedPods() {
			o.ObserveInt64(denied, int64(n), metric.WithAttributes(attribute.String(KeyReason, reason)))
		}
		o.ObserveInt64(kept, int64(cfg.KeptPods()))
		o.ObserveInt64(adopted, int64(cfg.Adopted()))
		o.ObserveInt64(bypassing, int64(cfg.Bypassing()))
		o.ObserveInt64(owner, one(cfg.Owner()))
		o.ObserveFloat64(age, cfg.WatchAge().Seconds())
		for verdict, n := range cfg.CNIResults() {
			o.ObserveInt64(results, int64(n), metric.WithAttributes(attribute.String(KeyVerdict, verdict)))
		}
		return nil
	}
	if _, err := meter.RegisterCallback(observe, expiry, denied, kept, adopted, bypassing, owner, age, results); err != nil {
		return fmt.Errorf("register gauges: %w", err)
	}
	return nil
}

// Handler serves the metrics in Prometheus' format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Shutdown ends the export. The instruments may still be called and do nothing.
func (m *Metrics) Shutdown(ctx context.Context) error { return m.provider.Shutdown(ctx) }

// servedLabels are what tells the series of requests apart. The code stays a number, so that the request path formats
// nothing.
type servedLabels struct {
	route string
	code  int
}

// Served records one answered metadata request. It is on the request path: attribute sets are made once and kept, since
// making one per request costs several percent of throughput.
func (m *Metrics) Served(route string, code int, took time.Duration) {
	m.requests.Record(context.Background(), took.Seconds(), m.servedOptions(servedLabels{route, code})...)
}

func (m *Metrics) servedOptions(l servedLabels) []metric.RecordOption {
	m.mu.RLock()
	options, ok := m.prepared[l]
	m.mu.RUnlock()
	if ok {
		return options
	}
	options = []metric.RecordOption{attributes(KeyRoute, l.route, KeyCode, strconv.Itoa(l.code))}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prepared[l] = options
	return options
}

// STSCalled records one call to STS. code is "OK" or AWS's error code.
func (m *Metrics) STSCalled(action, region, code string, took time.Duration) {
	m.sts.Record(context.Background(), took.Seconds(), attributes(KeyAction, action, KeyRegion, region, KeyCode, code))
}

// Minted counts one attempt to mint a session.
func (m *Metrics) Minted(result string) {
	m.mints.Add(context.Background(), 1, attributes(KeyResult, result))
}

// Denied counts one decision that denies a pod its role.
func (m *Metrics) Denied(reason string) {
	m.denials.Add(context.Background(), 1, attributes(KeyReason, reason))
}

// RedirectChecked records one look at the redirect: whether it had to be repaired, and whether it is whole now.
func (m *Metrics) RedirectChecked(repaired, intact bool) {
	if repaired {
		m.repairs.Add(context.Background(), 1)
	}
	m.intact.Record(context.Background(), one(intact))
}

// one is 1 for what is, and 0 for what is not.
func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// attributes turns keys and values, in turn, into an attribute set.
func attributes(pairs ...string) metric.MeasurementOption {
	set := make([]attribute.KeyValue, 0, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		set = append(set, attribute.String(pairs[i], pairs[i+1]))
	}
	return metric.WithAttributeSet(attribute.NewSet(set...))
}
