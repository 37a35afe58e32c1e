package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/identity"
	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/proxy"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
	"github.com/podrole/podrole/pkg/sts"
	"github.com/podrole/podrole/pkg/telemetry"
)

const (
	// warmUp is how much longer than the rate of calls takes pods are kept from an agent that lacks sessions for them.
	warmUp = 10 * time.Second
	// metadataWithin is how much longer pods are kept from an agent that does not know yet what to tell them of the node.
	metadataWithin = time.Second
	// patience is how long the API server may take to answer before pods are served by what was decided of them before.
	patience = 2 * time.Second
	// endWithin is how long the end waits for workers, once all requests are answered.
	endWithin = 3 * time.Second
)

// Run guards the node, serves its pods, and returns when ctx has ended and the requests in flight are answered. Guard
// and rules stay in place: until the next agent is up, pods are refused. It needs the right to change the network of
// the namespace it runs in (root, or CAP_NET_ADMIN and CAP_NET_RAW).
func Run(ctx context.Context, cfg config.Config, logger *slog.Logger) (err error) {
	klog.SetSlogLogger(logger) // client-go's own messages
	a := &agent{cfg: cfg, logger: logger, verified: make(chan struct{})}
	if err := a.telemetry(); err != nil {
		return err
	}
	a.health = &health{
		every: cfg.Redirect.Sweep, logger: logger, report: a.metrics.RedirectChecked,
		warn: func(reason, message string) { a.events.WarnNode(reason, message) }, untrusted: a.untrusted,
	}
	links, err := openLinks(cfg, logger)
	if err != nil {
		return err
	}
	defer links.close()
	// First of all: whatever fails below, pods do not reach the node's role.
	if err := links.guard(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w; the guard stays and pods are refused: podrole uninstall removes it", err)
		}
	}()
	if a.redirect, err = openRedirect(ctx, links, cfg.Redirect.IPTablesBackend); err != nil {
		return err
	}
	if err := a.openClaims(); err != nil {
		return err
	}
	if err := a.assemble(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

// Guard refuses pods the metadata address, and ends. It needs no address: that is for the agent to add.
func Guard(_ context.Context, cfg config.Config, logger *slog.Logger) error {
	links, err := openLinks(cfg, logger)
	if err != nil {
		return err
	}
	defer links.close()
	if err := links.node.CheckNode(); err != nil {
		return err
	}
	if _, err := links.node.EnsureGuard(); err != nil {
		return fmt.Errorf("guard the metadata address: %w", err)
	}
	return nil
}

// Uninstall takes rules, guard, address and state away, and leaves the node as it was before podrole. It does nothing while an
// agent runs that it knows of by --state-dir: that one would undo it.
func Uninstall(ctx context.Context, cfg config.Config, logger *slog.Logger) error {
	cfg.Metadata.ContainerCredentials = true // it may have been on
	if err := noAgent(cfg.State.Dir); err != nil {
		return err
	}
	links, err := openLinks(cfg, logger)
	if err != nil {
		return err
	}
	defer links.close()
	r, err := openRedirect(ctx, links, cfg.Redirect.IPTablesBackend)
	if err != nil {
		return err
	}
	return errors.Join(r.remove(ctx), removeState(cfg.State.Dir))
}

// agent is one run's set of parts.
type agent struct {
	cfg    config.Config
	logger *slog.Logger

	metrics     *telemetry.Metrics
	events      *telemetry.Events // nil without an API server
	redirect    *redirect
	claims      claims
	keeper      *keeper
	kube        kube
	cache       *cache.Cache
	assignments *assignments
	directory   *identity.Directory
	sandboxes   *cni.Watcher
	pins        *pins
	proxy       *proxy.Server
	state       *state.Dir       // nil without --state-dir
	decisions   *state.Decisions // nil without --state-dir
	known       metadata.Static  // of the node, by flags
	metadata    *metadata.Store
	health      *health
	verified    chan struct{}                   // closed when the authority is
	fault       atomic.Pointer[authority.Fault] // what was last found wrong with it; nil: nothing
}

// telemetry makes the metrics. They are read once the agent runs, when all parts are there.
func (a *agent) telemetry() (err error) {
	a.metrics, err = telemetry.New(telemetry.Config{
		Sessions: func(yield func(telemetry.SessionLife) bool) {
			for s := range a.cache.Sessions() {
				life := telemetry.SessionLife{
					Namespace:      s.Grant.Namespace,
					ServiceAccount: s.Grant.ServiceAccount,
					Left:           time.Until(s.Credentials.Expiration),
				}
				if !yield(life) {
					return
				}
			}
		},
		DeniedPods: func() map[string]int { return a.assignments.deniedPods() },
		KeptPods:   func() int { return a.assignments.keptPods() },
		Adopted:    func() int { return a.assignments.adopted() },
		Bypassing:  func() int { return a.assignments.bypassing() },
		Owner:      func() bool { return a.keeper.owns.Load() },
		WatchAge: func() time.Duration {
			if a.kube.pulse == nil { // there is no API server to watch
				return 0
			}
			return a.kube.pulse.Age()
		},
		CNIResults: func() map[string]int {
			counts := make(map[string]int)
			for verdict, n := range a.sandboxes.Counts() {
				counts[string(verdict)] = n
			}
			return counts
		},
	})
	return err
}

// assemble makes the parts and connects them. Nothing runs yet.
func (a *agent) assemble(ctx context.Context) error {
	own, err := ownAWS(ctx, a.cfg)
	if err != nil {
		return err
	}
	if a.cfg.Roles.DiscoverBaseRoleARN {
		if a.cfg.Roles.BaseRoleARN, err = discoverBaseARN(ctx, nodeMetadata(a.cfg)); err != nil {
			return err
		}
		a.logger.Info("base of role ARNs discovered", "base_role_arn", a.cfg.Roles.BaseRoleARN)
	}
	if a.kube, err = openKube(a.cfg, a.logger); err != nil {
		return err
	}
	if a.kube.client != nil {
		a.events = telemetry.NewEvents(a.kube.client.CoreV1(), a.cfg.Cluster.NodeName)
	}
	kept, err := a.openState()
	if err != nil {
		return err
	}
	minter, err := a.minter(own, kept.tokens)
	if err != nil {
		return err
	}
	a.cache, err = cache.New(cache.Config{
		Minter: minter,
		Store:  kept.sessions,
		Render: proxy.RenderCredentials,
		Rate:   a.cfg.STS.Rate,
		Linger: a.cfg.STS.Linger,
		Logger: a.logger,
		Observe: func(o cache.Outcome) {
			if o.Err == nil {
				a.metrics.Minted("ok")
				return
			}
			kind := sts.KindOf(o.Err)
			a.metrics.Minted(kind.String())
			if kind == sts.Denied && o.Changed {
				a.events.Warn(o.Pod, telemetry.EventRefused, o.Err.Error())
			}
		},
	})
	if err != nil {
		return err
	}
	decided := assignmentsConfig{
		policy:    policyOf(a.cfg),
		sessions:  a.cache,
		decisions: forgetful{},
		earlier:   kept.earlier,
		keep:      a.cfg.Roles.LastValidGrant,
		denied:    a.metrics.Denied,
		warn:      a.events.Warn,
		logger:    a.logger,
	}
	if a.decisions != nil {
		decided.decisions = a.decisions
	}
	a.assignments = newAssignments(decided)
	a.directory, err = identity.New(identity.Config{
		Sources:          a.kube.sources,
		Follower:         a.assignments,
		Logger:           a.logger,
		Locate:           a.redirect.locate,
		SharedInterfaces: a.cfg.Cluster.SharedInterfaces,

		ContainerCredentials: a.cfg.Metadata.ContainerCredentials,
	})
	if err != nil {
		return err
	}
	a.pins = &pins{
		pin: a.redirect.node.PinMAC, next: a.directory.SetSandboxes, logger: a.logger, read: make(chan struct{}),
	}
	a.sandboxes, err = cni.New(cni.Config{
		Dir:     a.cfg.Cluster.CNIDir,
		Changed: a.pins.SetSandboxes,
		Logger:  a.logger,
	})
	if err != nil {
		return err
	}
	// The region is where STS is called: the node's, unless the metadata service says another.
	a.known = metadata.Static{Region: own.Region, RegionGuessed: true, Zone: a.cfg.Metadata.AvailabilityZone}
	a.metadata = a.openMetadata()
	a.proxy, err = proxy.New(proxy.Config{
		Identity: a.directory,
		Roles:    a.assignments,
		Sessions: a.cache,
		Keys:     kept.keys,
		IMDSv1:   a.cfg.Metadata.IMDSv1,
		Wait:     a.cfg.Metadata.RequestWait,
		Grace:    a.cfg.Shutdown.Drain,
		Rate:     a.cfg.Metadata.RequestRate,

		Addresses:            []netip.Addr{a.cfg.Metadata.Address, a.cfg.Metadata.AddressIPv6},
		Metadata:             a.metadata,
		Allowances:           a.assignments,
		ContainerCredentials: a.cfg.Metadata.ContainerCredentials,

		Observe: func(route proxy.Route, code int, took time.Duration) {
			a.metrics.Served(string(route), code, took)
		},
		Logger: a.logger,
	})
	return err
}

// openMetadata makes what answers pods that ask about the node.
func (a *agent) openMetadata() *metadata.Store {
	cfg := metadata.Config{
		Policy: metadata.Policy{InstanceFacts: a.cfg.Metadata.InstanceFacts}, Allow: a.cfg.Metadata.Allow, Static: a.known, Logger: a.logger,
	}
	if a.cfg.Metadata.Upstream {
		cfg.Client = nodeMetadata(a.cfg)
	}
	return metadata.NewStore(cfg)
}

// readNode completes what pods are told by the labels of the Node, where no metadata service tells it. What flags say wins.
func (a *agent) readNode(ctx context.Context) {
	nodes := a.kube.node.CoreV1().Nodes()
	readNodeLabels(ctx, nodes, a.cfg.Cluster.NodeName, a.logger, func(labels map[string]string) (enough bool) {
		told := a.known.Or(metadata.FromLabels(labels))
		a.metadata.SetStatic(told)
		return told.Region != "" && told.Zone != ""
	})
}

func (a *agent) minter(own aws.Config, kept sts.TokenStore) (*sts.Minter, error) {
	cfg := sts.Config{
		Region:          own.Region,
		FailoverRegions: a.cfg.STS.FailoverRegions,
		FIPS:            a.cfg.STS.FIPS,
		DualStack:       a.cfg.STS.DualStack,
		AssumeRoleARN:   a.cfg.STS.AssumeRoleARN,
		HTTPClient:      httpClient(a.cfg),
		Timeout:         a.cfg.STS.Timeout,
		Observe:         a.metrics.STSCalled,
	}
	if a.cfg.STS.Endpoint != nil {
		cfg.Endpoint = a.cfg.STS.Endpoint.String()
	}
	if a.cfg.STS.CredentialSource == role.AssumeRole {
		cfg.Credentials = own.Credentials
		return sts.New(cfg)
	}
	tokens, err := sts.NewTokenRequester(sts.TokenConfig{
		Client:   a.kube.node.CoreV1(),
		Lifetime: a.cfg.STS.TokenLifetime,
		Ready:    a.verified,
		Store:    kept,
		Logger:   a.logger,
		Observe:  a.metrics.STSCalled,
	})
	if err != nil {
		return nil, err
	}
	cfg.Tokens = tokens
	return sts.New(cfg)
}

func policyOf(cfg config.Config) *role.Policy {
	keys := role.DefaultKeys()
	keys.RoleARN = cfg.Roles.RoleARNAnnotation
	keys.IRSARoleARN = cfg.Roles.IRSARoleARNAnnotation
	keys.PodRole = cfg.Roles.PodRoleAnnotation
	return &role.Policy{
		Keys:              keys,
		Source:            cfg.STS.CredentialSource,
		BaseARN:           cfg.Roles.BaseRoleARN,
		DefaultRole:       cfg.Roles.DefaultRole,
		PodAnnotations:    cfg.Roles.PodRoleAnnotations,
		AllowedAsRegexps:  cfg.Roles.AllowedRolesFormat == config.FormatRegexp,
		RequirePermission: cfg.Roles.RequireNamespacePermission,
		Duration:          cfg.Roles.SessionDuration,
		Audiences:         cfg.STS.Audiences,
		SessionTags:       cfg.Roles.SessionTags,
		Cluster:           cfg.Cluster.ClusterName,
		Node:              cfg.Cluster.NodeName,
	}
}

// run runs the parts. The workers outlive the proxy, so that requests in flight at the end are still answered.
func (a *agent) run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	a.events.Start()
	defer a.events.Stop()
	workers, work := errgroup.WithContext(work)
	workers.Go(func() error { return a.directory.Run(work) })
	workers.Go(func() error { return a.sandboxes.Run(work) })
	workers.Go(func() error { return a.cache.Run(work) })
	workers.Go(func() error { repeat(work, time.Minute, a.assignments.expire); return nil })
	workers.Go(func() error { a.verifyAuthority(work); return nil })
	workers.Go(func() error { a.settle(work); return nil })
	if a.state != nil {
		workers.Go(func() error { repeat(work, time.Hour, a.rotateKeys); return nil })
	}
	if a.decisions != nil {
		workers.Go(func() error { return a.decisions.Run(work) })
	}
	if a.kube.run != nil {
		workers.Go(func() error { return a.kube.run(work) })
	}
	workers.Go(func() error { return a.metadata.Run(work) })
	if a.kube.client != nil && !a.cfg.Metadata.Upstream {
		workers.Go(func() error { a.readNode(work); return nil })
	}
	served := handler(a.metrics.Handler(), a.health)
	if address := a.cfg.Observability.MetricsAddress; address != "" {
		workers.Go(func() error { serveHTTP(work, "tcp", address, served, a.logger); return nil })
	}
	if socket := a.cfg.Observability.ProbeSocket; socket != "" {
		workers.Go(func() error { serveHTTP(work, "unix", socket, served, a.logger); return nil })
	}

	serve, stopServing := context.WithCancel(ctx)
	defer stopServing()
	defer context.AfterFunc(work, stopServing)() // a worker that fails ends the agent
	err := a.serve(serve)

	stopWork()
	err = errors.Join(err, a.await(workers))
	if a.state != nil {
		err = errors.Join(err, a.state.Close())
	}
	a.logger.Info("agent ended; guard and rules stay in place")
	return errors.Join(err, a.metrics.Shutdown(context.WithoutCancel(ctx)))
}

// await waits for the workers, but not for ever: while the API server is down, client-go sleeps its back-off out, up to a
// minute, whatever its context says, and the kubelet does not wait that long. The process ends either way.
func (a *agent) await(workers *errgroup.Group) error {
	ended := make(chan error, 1)
	go func() { ended <- workers.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(endWithin):
		a.logger.Warn("not waiting any longer for the watches of the API server to end")
		return nil
	}
}

// serve answers pods until ctx ends. Pods are led here only when there is something to answer, and led away, if another
// agent is there, before this one stops.
func (a *agent) serve(ctx context.Context) error {
	listeners, rules, err := a.redirect.listen(ctx)
	if err != nil {
		return err
	}
	serving, ctx := errgroup.WithContext(ctx)
	answering, stopAnswering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAnswering()
	for _, l := range listeners {
		serving.Go(func() error { return a.proxy.Serve(answering, l) })
	}
	serving.Go(func() error {
		defer stopAnswering()
		a.keeper.rules, a.keeper.guard = a.redirect.rulesHalf(rules), a.redirect.guardHalf()
		before, claimed := context.WithCancel(ctx)
		defer claimed()
		serving.Go(func() error { a.keeper.guardBefore(before); return nil })
		a.warm(ctx)
		if err := a.redirect.install(ctx, a.claims, rules); err != nil {
			return nil // told to end before pods were led here
		}
		claimed()
		a.health.install(true)
		defer a.health.install(false)
		a.logger.Info("agent ready")
		a.readyWork(ctx, serving)
		a.keeper.run(ctx)
		a.keeper.leave()
		return nil
	})
	return serving.Wait()
}

// readyWork starts what is only to be done once pods are led here and answered.
func (a *agent) readyWork(ctx context.Context, serving *errgroup.Group) {
	serving.Go(func() error { a.redirect.warnOfLeftovers(ctx, a.events.WarnNode); return nil })
	if a.cfg.Metadata.Upstream {
		serving.Go(func() error { warnOfIMDSv1(ctx, a.cfg, a.logger); return nil })
	}
	key := a.cfg.Cluster.StartupTaint
	if key == "" || a.kube.client == nil {
		return
	}
	taint := startupTaint{a.kube.client.CoreV1().Nodes(), a.cfg.Cluster.NodeName, key, a.logger}
	serving.Go(func() error { taint.remove(ctx); return nil })
}

// warm waits until the pods of this node are known and decided on, and their sessions minted: as long as the rate of calls
// to STS takes for all of them, and warmUp; and until the node's metadata has been read, for a moment. It returns at the
// end of ctx at the latest.
func (a *agent) warm(ctx context.Context) {
	// Before the CNI results are read, what the API says might be taken for all there is.
	select {
	case <-a.pins.read:
	case <-ctx.Done():
		return
	}
	if !a.decided(ctx) || !a.trusted(ctx) {
		return
	}
	grants := a.assignments.grants()
	atRate := time.Duration(float64(len(grants)) / a.cfg.STS.Rate * float64(time.Second))
	bounded, cancel := context.WithTimeout(ctx, warmUp+atRate)
	defer cancel()
	cold := 0
	for g := range grants {
		if _, err := a.cache.Get(bounded, g); err != nil {
			cold++
		}
	}
	a.logger.Info("pods of this node are decided on", "grants", len(grants), "without_session", cold)
	select {
	case <-a.metadata.Loaded():
	case <-time.After(metadataWithin): // what is not known by then is answered as that
	case <-ctx.Done():
	}
}

// decided waits until the pods of this node are decided on: anew, or, while the API server cannot be asked, as the agent
// before did. It returns false if ctx ends first.
func (a *agent) decided(ctx context.Context) bool {
	const remind = 10 * time.Second
	reminder := time.NewTicker(remind)
	defer reminder.Stop()
	look := time.NewTicker(patience)
	defer look.Stop()
	for {
		select {
		case <-a.directory.Synced():
			return true
		case <-look.C:
			if a.assignments.adopted() > 0 {
				return true
			}
		case <-reminder.C:
			a.logger.Warn("still waiting for the API server to name the pods of this node; " +
				"they are refused meanwhile, unless another agent serves them")
		case <-ctx.Done():
			return false
		}
	}
}

// adopt goes by what the agent before decided of the pods whose sandboxes are still there.
func (a *agent) adopt() {
	bound := a.cfg.State.MaxAge
	if n := a.assignments.adopt(a.directory.Assume(a.assignments.recent(bound)), bound); n > 0 {
		a.logger.Warn("the API server cannot be reached: pods are served by what was decided of them before",
			"pods", n, "at_most", bound)
	}
}

// othersServe reports whether another agent on this node is there to serve its pods: one that has been told more than
// this one.
func (a *agent) othersServe() bool {
	others, err := a.claims.Others()
	return err == nil && others
}

// adoptUntilSynced adopts as often as there may be something to adopt: sandboxes come late, or are made anew, and the
// API server may fall silent in the middle of its answers. It returns false if ctx ends before all is read.
func (a *agent) adoptUntilSynced(ctx context.Context) bool {
	look := time.NewTicker(patience)
	defer look.Stop()
	recalled := false
	for {
		select {
		case <-a.directory.Synced():
			return true
		case <-look.C:
			if a.kube.reach == nil || a.kube.reach.Answered() || a.othersServe() {
				continue
			}
			if !recalled {
				a.recall()
				recalled = true
			}
			a.adopt()
		case <-ctx.Done():
			return false
		}
	}
}

// settle waits until all pods of this node have been decided on, and from then on keeps note of it for the agent after
// this one.
func (a *agent) settle(ctx context.Context) {
	if !a.adoptUntilSynced(ctx) {
		return
	}
	granted := a.assignments.settle()
	if a.decisions == nil {
		return
	}
	a.decisions.Retain(granted)
	a.assignments.retell(a.seen()) // what was decided meanwhile, which Retain did not know of
	repeat(ctx, time.Minute, func() {
		if a.kube.pulse == nil {
			a.decisions.Confirm(time.Now()) // objects come from a folder, which is always there
		} else if a.kube.reach.Answered() {
			a.decisions.Confirm(a.seen())
		}
	})
}

// seen is when objects were last known to be as they are held.
func (a *agent) seen() time.Time {
	if a.kube.pulse == nil {
		return time.Now()
	}
	return time.Now().Add(-a.kube.pulse.Age())
}
