package proxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// memory is a table whose missing entries park the caller until they are put in or its context ends.
type memory[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]V
	changed chan struct{}
}

func newMemory[K comparable, V any]() *memory[K, V] {
	return &memory[K, V]{entries: make(map[K]V), changed: make(chan struct{})}
}

func (m *memory[K, V]) put(k K, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[k] = v
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory[K, V]) peek(k K) (V, bool, chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.entries[k]
	return v, ok, m.changed
}

func (m *memory[K, V]) await(ctx context.Context, k K) (V, error) {
	for {
		v, ok, changed := m.peek(k)
		if ok {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

type fakeIdentity struct {
	*memory[netip.Addr, role.Workload]
}

func (f fakeIdentity) Lookup(source netip.Addr) (role.Workload, bool) {
	w, ok, _ := f.peek(source)
	return w, ok
}

func (f fakeIdentity) Await(ctx context.Context, source netip.Addr) (role.Workload, error) {
	return f.await(ctx, source)
}

type fakeAllowances struct {
	*memory[role.Workload, []metadata.Pattern]
}

func (f fakeAllowances) MetadataAllowed(ctx context.Context, w role.Workload) ([]metadata.Pattern, error) {
	return f.await(ctx, w)
}

type decision struct {
	grant  role.Grant
	denial *role.Denial
}

type fakeRoles struct {
	*memory[role.Workload, decision]
}

func (f fakeRoles) Decide(ctx context.Context, w role.Workload) (role.Grant, error) {
	d, err := f.await(ctx, w)
	if err != nil {
		return role.Grant{}, err
	}
	if d.denial != nil {
		return role.Grant{}, d.denial
	}
	return d.grant, nil
}

type minted struct {
	session *cache.Session
	err     error
}

type fakeSessions struct {
	*memory[role.Grant, minted]
}

func (f fakeSessions) Get(ctx context.Context, g role.Grant) (*cache.Session, error) {
	m, err := f.await(ctx, g)
	if err != nil {
		return nil, err
	}
	return m.session, m.err
}

// node is a Server with its three neighbours in memory.
type node struct {
	*Server
	identity fakeIdentity
	roles    fakeRoles
	sessions fakeSessions
}

var (
	testKey    = []byte("0123456789abcdef0123456789abcdef")
	testStart  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	testStatic = metadata.Static{Region: "eu-west-1", Zone: "eu-west-1b"}
)

// metadataHost is the Host header of nearly all requests.
const metadataHost = "169.254.169.254"

// The secrets of the fake sessions, which must be in no log.
const (
	testSecret       = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	testSessionToken = "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ=="
)

// newNode returns a node that knows nobody. edit, if not nil, changes the configuration.
func newNode(tb testing.TB, edit func(*Config)) *node {
	tb.Helper()
	n := &node{
		identity: fakeIdentity{newMemory[netip.Addr, role.Workload]()},
		roles:    fakeRoles{newMemory[role.Workload, decision]()},
		sessions: fakeSessions{newMemory[role.Grant, minted]()},
	}
	c := Config{
		Identity: n.identity,
		Roles:    n.roles,
		Sessions: n.sessions,
		Keys:     [][]byte{testKey},
		IMDSv1:   true,
		Metadata: metadata.NewStore(metadata.Config{Static: testStatic}),
		Logger:   slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&c)
	}
	var err error
	if n.Server, err = New(c); err != nil {
		tb.Fatal(err)
	}
	return n
}

// testPod returns a pod that differs from others in everything.
func testPod(name string) role.Workload {
	return role.Workload{Namespace: "apps", Name: name, UID: "uid-of-" + name, ServiceAccount: name}
}

func testGrant(name string) role.Grant {
	return role.Grant{
		Namespace:      "apps",
		ServiceAccount: name,
		RoleARN:        "arn:aws:iam::123456789012:role/team/" + name,
		Duration:       time.Hour,
		Source:         role.WebIdentity,
	}
}

// testSession returns a session of g, minted now, whose token has size bytes.
func testSession(g role.Grant, now time.Time, size int) *cache.Session {
	token := testSessionToken
	for len(token) < size {
		token += testSessionToken
	}
	c := sts.Credentials{
		AccessKeyID:     "ASIAIOSFODNN7EXAMPLE",
		SecretAccessKey: testSecret,
		SessionToken:    token,
		Expiration:      now.Add(time.Hour),
		AssumedRoleARN:  "arn:aws:sts::123456789012:assumed-role/" + g.RoleName() + "/session",
	}
	return &cache.Session{Grant: g, Credentials: c, Minted: now, Body: RenderCredentials(c, now)}
}

// serve makes the node know a pod with a role and a session, warm.
func (n *node) serve(source string, name string, now time.Time) {
	w, g := testPod(name), testGrant(name)
	n.identity.put(netip.MustParseAddr(source), w)
	n.roles.put(w, decision{grant: g})
	n.sessions.put(g, minted{session: testSession(g, now, 0)})
}

// start serves l until the test ends, and fails the test if that does not end well.
func (n *node) start(tb testing.TB, l net.Listener) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Serve(ctx, l) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
}

// pipes is a listener without a network, which synctest needs.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects as source.
func (p *pipes) dial(source string) net.Conn {
	client, server := net.Pipe()
	p.accept <- addressed{server, peer(source)}
	return client
}

// peer is the address of a client, which prints as it is, mapped or not.
type peer string

func (p peer) Network() string { return "tcp" }
func (p peer) String() string  { return net.JoinHostPort(string(p), "40000") }

// addressed is a connection from an address of the test's choice.
type addressed struct {
	net.Conn
	from net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.from }

// ask sends a raw request as source and returns the raw response.
func (p *pipes) ask(source, request string) string {
	c := p.dial(source)
	defer c.Close()
	go io.WriteString(c, request)
	response, _ := io.ReadAll(c)
	return string(response)
}
