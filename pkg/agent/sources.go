package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/identity"
	"github.com/podrole/podrole/pkg/kubefiles"
)

// kube is where Kubernetes objects and ServiceAccount tokens come from.
type kube struct {
	sources identity.Sources
	client  kubernetes.Interface            // as the agent itself; nil where there is no API server
	node    kubernetes.Interface            // as the agent's node, with authority.Node; else the same
	another kubernetes.Interface            // as another node, with authority.Node: what must be refused
	rest    *rest.Config                    // nil where there is no API server
	pulse   *identity.Pulse                 // of the watch of pods; nil where there is no API server
	reach   *identity.Reach                 // nil where there is no API server
	run     func(ctx context.Context) error // follows the source itself; nil where informers do all
}

// quiet lets a watch of pods be silent for less than a minute, which an API server that sends bookmarks hardly ever is. The
// connection as such is looked after by client-go's HTTP/2 pings.
func quiet() identity.Quiet {
	return identity.Quiet{Pods: 50 * time.Second, Namespaces: 5 * time.Minute}
}

func openKube(cfg config.Config, logger *slog.Logger) (kube, error) {
	if dir := cfg.Cluster.KubeObjects; dir != "" {
		store, err := kubefiles.Open(dir, logger)
		if err != nil {
			return kube{}, err
		}
		logger.Info("objects come from a folder instead of an API server; credentials come by assume-role", "dir", dir)
		return kube{
			sources: identity.Sources{
				Pods:            store.Pods(cfg.Cluster.NodeName),
				ServiceAccounts: store.ServiceAccounts,
				Namespaces:      store.Namespaces,
			},
			run: store.Run,
		}, nil
	}
	rc, err := restConfig(cfg.Cluster.Kubeconfig)
	if err != nil {
		return kube{}, err
	}
	// One TokenRequest per mint at most: the client must not be what sessions wait for.
	rc.QPS, rc.Burst = 50, 100
	rc.UserAgent = "podrole"
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return kube{}, fmt.Errorf("make Kubernetes client: %w", err)
	}
	objects, err := metadata.NewForConfig(rc)
	if err != nil {
		return kube{}, fmt.Errorf("make Kubernetes metadata client: %w", err)
	}
	k := kube{client: client, node: client, rest: rc, pulse: new(identity.Pulse), reach: new(identity.Reach)}
	if cfg.STS.TokenAuthority == authority.Node {
		if k.node, err = actingAs(rc, cfg.Cluster.NodeName); err != nil {
			return kube{}, err
		}
		if k.another, err = actingAs(rc, anotherNode(cfg)); err != nil {
			return kube{}, err
		}
	}
	k.sources = identity.Cluster{
		Client: k.node, Objects: objects, Node: cfg.Cluster.NodeName, Quiet: quiet(), Pulse: k.pulse, Reach: k.reach,
	}.Sources()
	return k, nil
}

// anotherNode is the name of a node that is not this one, and likely of none.
func anotherNode(cfg config.Config) string { return cfg.Cluster.NodeName + ".another" }

// withToken returns a client with a bearer token in the place of the agent's own credentials.
func (k kube) withToken(token string) (kubernetes.Interface, error) {
	rc := rest.AnonymousClientConfig(k.rest)
	rc.BearerToken = token
	return kubernetes.NewForConfig(rc)
}

// actingAs returns a client that impersonates a node.
func actingAs(rc *rest.Config, node string) (kubernetes.Interface, error) {
	as := rest.CopyConfig(rc)
	as.Impersonate.UserName = "system:node:" + node
	client, err := kubernetes.NewForConfig(as)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client as %s: %w", as.Impersonate.UserName, err)
	}
	return client, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server: %w; outside a cluster give --kubeconfig or --kube-objects", err)
		}
		return rc, nil
	}
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig: %w", err)
	}
	return rc, nil
}
