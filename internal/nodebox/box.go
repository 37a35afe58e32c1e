package nodebox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
)

// PodNetwork is how pods are attached to the node.
type PodNetwork int

const (
	// Routed gives each pod a veth pair of its own and the node a host route to it, as Amazon VPC CNI and Calico do:
	// /32 and /128 addresses, gateways 169.254.1.1 and fe80::1 with permanent neighbour entries in the pod.
	Routed PodNetwork = iota
	// Bridge puts all pods on one bridge, cni0, which holds the gateway addresses, as the bridge CNI and flannel do.
	Bridge
)

// Config is what New needs. The zero value is a good box.
type Config struct {
	// Pods is how pods are attached; default Routed.
	Pods PodNetwork
	// CNIDir is the folder in whose sub-folder "results" the CNI results are cached: /var/lib/cni on a real node.
	// Default: a folder of the box. The results that a box wrote are removed with it; after a crash, only those in the
	// default folder are.
	CNIDir string
	// Logger takes debug messages about what is built; default: discarded.
	Logger *slog.Logger
}

// errClosed says that a box, or a part of it, is used after it was closed or removed.
var errClosed = errors.New("closed")

// Box is a node in a box. Its methods may be called concurrently.
type Box struct {
	// Node is the node's namespace: the place for the agent and its iptables. It forwards IPv4 and IPv6, its default
	// route goes to Outside, and it holds no metadata address.
	Node *Namespace
	// Outside is what lies behind the node's uplink: it holds the metadata addresses and the outside addresses, and
	// has routes to the pods.
	Outside *Namespace

	// NodeIP and NodeIPv6 are the addresses of the node's uplink. All IPv6 addresses of a box are the zero Addr where
	// the kernel has no IPv6.
	NodeIP, NodeIPv6 netip.Addr
	// OutsideIP and OutsideIPv6 are for stand-ins of AWS endpoints and the like.
	OutsideIP, OutsideIPv6 netip.Addr
	// MetadataIP and MetadataIPv6 are 169.254.169.254 and fd00:ec2::254, in Outside: the metadata service whose
	// credentials are the node's.
	MetadataIP, MetadataIPv6 netip.Addr

	// Dir is a folder for files that end with the box.
	Dir string
	// CNIDir is the folder that stands for /var/lib/cni.
	CNIDir string
	// CNIResults is the results folder in CNIDir. As with libcni, it does not exist before the first pod.
	CNIResults string

	name    string
	pods    PodNetwork
	logger  *slog.Logger
	spawner *spawner
	leaks   *recorder
	watched *recorder

	bridgeMAC net.HardwareAddr // with Bridge

	mu        sync.Mutex // guards what follows
	closed    bool
	podCount  int
	live      map[*Pod]bool
	addresses addressPool
	results   map[string]bool // result files written and not removed yet
}

// New builds a box. It removes the boxes of dead processes first. The context bounds the building only.
func New(ctx context.Context, c Config) (*Box, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("build box: network namespaces need root; run as root")
	}
	if c.Pods != Routed && c.Pods != Bridge {
		return nil, fmt.Errorf("build box: unknown pod network %d; use Routed or Bridge", c.Pods)
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	o, err := currentOwner()
	if err != nil {
		return nil, err
	}
	b := &Box{
		NodeIP:     nodeIP(),
		OutsideIP:  outsideIP(),
		MetadataIP: metadataIP(),
		name:       o.name(),
		pods:       c.Pods,
		logger:     c.Logger,
		live:       make(map[*Pod]bool),
		results:    make(map[string]bool),
	}
	if kernelHasIPv6() {
		b.NodeIPv6, b.OutsideIPv6, b.MetadataIPv6 = nodeIPv6(), outsideIPv6(), metadataIPv6()
	}
	if b.logger == nil {
		b.logger = slog.New(slog.DiscardHandler)
	}
	b.logger = b.logger.With("box", b.name)
	b.Dir = filepath.Join(os.TempDir(), b.name)
	b.CNIDir = c.CNIDir
	if b.CNIDir == "" {
		b.CNIDir = filepath.Join(b.Dir, "cni")
	}
	b.CNIResults = filepath.Join(b.CNIDir, "results")
	b.spawner = startSpawner()
	if err := b.build(ctx); err != nil {
		return nil, wrapf(errors.Join(err, b.Close()), "build box")
	}
	b.logger.Debug("box is built", "ipv6", b.HasIPv6())
	return b, nil
}

// HasIPv6 reports whether the kernel has IPv6, and so the box.
func (b *Box) HasIPv6() bool { return b.NodeIPv6.IsValid() }

func (b *Box) build(ctx context.Context) error {
	if err := os.Mkdir(b.Dir, 0o700); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	var err error
	if b.Node, err = b.namespace("node", true); err != nil {
		return err
	}
	if b.Outside, err = b.namespace("outside", false); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.connectOutside(); err != nil {
		return err
	}
	if b.pods == Bridge {
		if err := b.createBridge(); err != nil {
			return err
		}
	}
	nodeAddresses := validAddresses(b.NodeIP, b.NodeIPv6)
	if b.leaks, err = newRecorder(b.Outside, outsideName, nodeAddresses); err != nil {
		return err
	}
	if b.watched, err = newRecorder(b.Outside, outsideName, nil); err != nil {
		return err
	}
	return b.leaks.watch(validAddresses(b.MetadataIP, b.MetadataIPv6)...)
}

// namespace creates a namespace of the box.
func (b *Box) namespace(role string, forward bool) (*Namespace, error) {
	// iptables takes a host-wide lock by default; a box's tables are its own, so is its lock (iptables(8)).
	env := []string{"XTABLES_LOCKFILE=" + filepath.Join(b.Dir, "xtables.lock")}
	return newNamespace(b.name+"-"+role, b.spawner, env, func() error { return applySysctls(b.HasIPv6(), forward) })
}

// Leaks returns the packets for the metadata addresses that left the node under another source address than the
// node's, of any protocol, oldest first: a redirect that holds lets none through. Every packet that arrived in Outside
// before the call is in it. At most some thousands are kept; what is dropped then are the newest.
func (b *Box) Leaks() []Packet { return b.leaks.packets() }

// Watch records, from now on, the packets for these destinations that leave the node, whatever their source. It is
// meant for addresses that must never leave it.
func (b *Box) Watch(destinations ...netip.Addr) error { return b.watched.watch(destinations...) }

// Watched returns what Watch recorded, under the terms of Leaks.
func (b *Box) Watched() []Packet { return b.watched.packets() }

// Close ends the processes in the box and removes all it made. Calling it again does nothing. The links go with their
// namespaces, which the kernel frees once the caller has closed its listeners and connections in them.
func (b *Box) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true

	namespaces := make([]*Namespace, 0, len(b.live)+2)
	for pod := range b.live {
		namespaces = append(namespaces, pod.Namespace)
	}
	for _, n := range []*Namespace{b.Node, b.Outside} {
		if n != nil {
			namespaces = append(namespaces, n)
		}
	}
	ids := make(map[namespaceID]bool, len(namespaces))
	for _, n := range namespaces {
		ids[n.id] = true
	}
	b.spawner.close()
	var errs []error
	if len(ids) > 0 {
		errs = append(errs, endProcesses(ids))
	}
	for _, r := range []*recorder{b.leaks, b.watched} {
		if r != nil {
			errs = append(errs, r.close())
		}
	}
	for _, n := range namespaces {
		errs = append(errs, n.close())
	}
	for file := range b.results {
		errs = append(errs, removeResult(file))
	}
	errs = append(errs, wrapf(os.RemoveAll(b.Dir), "remove folder"))
	return wrapf(errors.Join(errs...), "close box")
}
