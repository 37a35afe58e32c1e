package identity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/pkg/role"
)

func workloadOf(p *corev1.Pod) role.Workload {
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	return role.Workload{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), ServiceAccount: account}
}

// cniUIDOf returns the UID that the container runtime gives to a CNI: the pod's own, but of a static pod the hash of its
// manifest, which its mirror in the API carries as an annotation
// (https://kubernetes.io/docs/reference/labels-annotations-taints/#kubernetes-io-config-mirror).
func cniUIDOf(p *corev1.Pod) string {
	if hash := p.Annotations[corev1.MirrorPodAnnotationKey]; hash != "" {
		return hash
	}
	return string(p.UID)
}

// finished reports whether p will never run again. Its addresses may be another pod's already.
func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// addressesOf returns the addresses that p's status names, sorted, unless it is being deleted with all its containers ended,
// when its sandbox may be gone already. (Ended containers alone prove nothing: they are between two init containers, or
// about to be restarted.)
func addressesOf(p *corev1.Pod) []netip.Addr {
	if p.DeletionTimestamp != nil && allEnded(p.Status.ContainerStatuses) {
		return nil
	}
	var addresses []netip.Addr
	for _, text := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if a, err := netip.ParseAddr(text.IP); err == nil {
			addresses = append(addresses, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return slices.Compact(addresses)
}

func allEnded(containers []corev1.ContainerStatus) bool {
	for _, c := range containers {
		if c.State.Terminated == nil {
			return false
		}
	}
	return len(containers) > 0
}

// bypasses are variables by which a container's SDKs find credentials before they would ask the metadata service: the IRSA
// webhook sets the first, the EKS Pod Identity webhook and ECS the others
// (https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html).
func bypasses() []string {
	return []string{
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
	}
}

// bypassOf returns the first such variable in p's containers; none is the empty string. Init containers are among them:
// sidecars are such too, and webhooks change them all alike. Where the container credentials endpoint is served, a variable
// that leads there is none.
func bypassOf(p *corev1.Pod, containerCredentials bool) string {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, variable := range c.Env {
			if slices.Contains(bypasses(), variable.Name) && !(containerCredentials && leadsToContainerCredentials(variable)) {
				return variable.Name
			}
		}
	}
	return ""
}

// leadsToContainerCredentials reports whether SDKs find the container credentials endpoint by a variable, which is relative
// to 169.254.170.2, or as the EKS Pod Identity webhook writes it.
func leadsToContainerCredentials(v corev1.EnvVar) bool {
	switch v.Name {
	case "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI":
		return strings.HasPrefix(v.Value, "/v2/credentials")
	case "AWS_CONTAINER_CREDENTIALS_FULL_URI":
		return v.Value == "http://169.254.170.23/v1/credentials" || v.Value == "http://[fd00:ec2::23]/v1/credentials"
	}
	return false
}

// trimPod keeps of a pod what this package reads, so that large specs and managed fields take no memory.
func (c Config) trimPod(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("want a pod, got %T", object)
	}
	trimmed := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         p.Namespace,
			Name:              p.Name,
			UID:               p.UID,
			ResourceVersion:   p.ResourceVersion,
			Annotations:       p.Annotations,
			DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec: corev1.PodSpec{
			NodeName:           p.Spec.NodeName,
			ServiceAccountName: p.Spec.ServiceAccountName,
			HostNetwork:        p.Spec.HostNetwork,
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	if variable := bypassOf(p, c.ContainerCredentials); variable != "" {
		trimmed.Spec.Containers = []corev1.Container{{Env: []corev1.EnvVar{{Name: variable}}}}
	}
	for _, c := range p.Status.ContainerStatuses {
		trimmed.Status.ContainerStatuses = append(trimmed.Status.ContainerStatuses,
			corev1.ContainerStatus{State: corev1.ContainerState{Terminated: c.State.Terminated}})
	}
	return trimmed, nil
}

// trimMetadata keeps of a ServiceAccount or Namespace its name and annotations.
func trimMetadata(object any) (any, error) {
	m, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return nil, fmt.Errorf("want object metadata, got %T", object)
	}
	return &metav1.PartialObjectMetadata{
		TypeMeta: m.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       m.Namespace,
			Name:            m.Name,
			UID:             m.UID,
			ResourceVersion: m.ResourceVersion,
			Annotations:     m.Annotations,
		},
	}, nil
}
