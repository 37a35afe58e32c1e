package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/podrole/podrole/e2e/cluster/kube"
	"github.com/podrole/podrole/internal/awstest"
)

const (
	region   = "eu-west-1"
	account  = "111122223333"
	nodeRole = "arn:aws:iam::" + account + ":role/node"
	// awsPort is where AWS answers outside of the nodes.
	awsPort = 8000
)

func roleARN(name string) string { return "arn:aws:iam::" + account + ":role/" + name }

// aws is an AWS that trusts the cluster's issuer, and the nodes' metadata service.
type aws struct {
	*awstest.AWS
	provider string // ARN of the OIDC provider
	// metadata are the metadata services as the nodes see them, in the order of the nodes. Whoever is no node gets the
	// first node's, and is recorded there as a leak.
	metadata []*awstest.Metadata
}

// newAWS serves AWS and the metadata service outside of the cluster's nodes, until the sandbox ends.
func newAWS(c *kube.Cluster) (*aws, error) {
	stand, err := awstest.New(awstest.Config{})
	if err != nil {
		return nil, err
	}
	a := &aws{AWS: stand}
	err = a.PutRole(awstest.Role{
		ARN: nodeRole, Trust: awstest.TrustService("ec2.amazonaws.com"), Permissions: awstest.Permit("sts:AssumeRole"),
	})
	if err != nil {
		return nil, err
	}
	// The keys are fetched from the API server, by anybody's right, at every call.
	client := c.IssuerClient()
	client.Transport = &remembering{RoundTripper: client.Transport, last: map[string][]byte{}}
	a.provider, err = a.PutProvider(awstest.Provider{Account: account, Issuer: kube.Server(), Client: client})
	if err != nil {
		return nil, err
	}
	byNode := map[netip.Addr]*awstest.Metadata{}
	for i, n := range c.Nodes {
		m, err := a.NewMetadata(awstest.NodeConfig{
			RoleARN: nodeRole, Region: region, AvailabilityZone: region + string(rune('a'+i)), LocalIPv4: n.Address,
			InstanceID: fmt.Sprintf("i-%017d", i+1),
			Allowed:    func(source netip.Addr) bool { return source == n.Address },
		})
		if err != nil {
			return nil, err
		}
		a.metadata = append(a.metadata, m)
		byNode[n.Address] = m
	}
	pick := func(address string) *awstest.Metadata {
		if source, err := netip.ParseAddrPort(address); err == nil && byNode[source.Addr().Unmap()] != nil {
			return byNode[source.Addr().Unmap()]
		}
		return a.metadata[0]
	}
	if err := serve(netip.AddrPortFrom(kube.Outside(), awsPort), a.Endpoint(region), nil); err != nil {
		return nil, err
	}
	node := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pick(r.RemoteAddr).ServeHTTP(w, r) })
	return a, serve(netip.AddrPortFrom(kube.Metadata(), 80), node, func(conn net.Conn, state http.ConnState) {
		pick(conn.RemoteAddr().String()).ConnState(conn, state)
	})
}

// serve answers until the sandbox ends.
func serve(address netip.AddrPort, handler http.Handler, follow func(net.Conn, http.ConnState)) error {
	l, err := net.Listen("tcp", address.String())
	if err != nil {
		return fmt.Errorf("listen outside of the nodes: %w", err)
	}
	server := &http.Server{Handler: handler, ConnState: follow, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	return nil
}

// trustAccount makes an IAM role that a ServiceAccount may assume by its token, and nobody else: what IRSA documents.
func (a *aws) trustAccount(name, namespace, serviceAccount string) error {
	return a.PutRole(awstest.Role{ARN: roleARN(name), Trust: awstest.TrustServiceAccount(a.provider, namespace, serviceAccount)})
}

// leaks returns what came from elsewhere than the nodes themselves, in the order in which it came.
func (a *aws) leaks() []awstest.MetadataRequest { return a.metadata[0].Leaks() }

// trustPrincipal makes an IAM role that a user or another role may assume.
func (a *aws) trustPrincipal(name, principal string) error {
	return a.PutRole(awstest.Role{ARN: roleARN(name), Trust: awstest.TrustPrincipals(principal)})
}

// slow makes calls for web identities take this long, until it is called off.
func (a *aws) slow(latency time.Duration) (off func(), err error) {
	return a.Inject(awstest.Fault{Service: "sts", Action: "AssumeRoleWithWebIdentity", Latency: latency})
}

// minted says whose session an access key is of.
func (a *aws) minted(key string) (awstest.Session, error) {
	session, ok := a.LookupSession(key)
	if !ok {
		return session, fmt.Errorf("%s is no key that AWS made", key)
	}
	return session, nil
}
