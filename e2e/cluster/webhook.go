package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

const (
	irsaKey      = "eks.amazonaws.com/role-arn"
	irsaVariable = "AWS_WEB_IDENTITY_TOKEN_FILE"
	skipLabel    = "eks.amazonaws.com/skip-pod-identity-webhook"
	webhookPort  = 9443
)

// webhookSkip has a stand-in of the IRSA webhook in the cluster, and an overlay that keeps it from some pods.
func (s *stage) webhookSkip(ctx context.Context) error {
	const taken, spared = "taken", "spared"
	if err := s.serveWebhook(ctx); err != nil {
		return err
	}
	for namespace, labels := range map[string]map[string]string{taken: nil, spared: {"podrole.io/skip-irsa-webhook": "true"}} {
		if err := s.addNamespace(ctx, namespace, nil, labels); err != nil {
			return err
		}
		if err := s.aws.trustAccount(namespace, namespace, "app"); err != nil {
			return err
		}
		if err := s.addAccount(ctx, namespace, "app", map[string]string{irsaKey: roleARN(namespace)}); err != nil {
			return err
		}
	}
	if !s.check("kubectl apply -k manifests/overlays/webhook-skip", func() (string, error) {
		return "", s.deploy(ctx, overlay("webhook-skip"))
	}) {
		return nil
	}
	node := s.kube.Nodes[0].Name
	s.check("a pod of a Namespace that does not ask is taken by the IRSA webhook, and an Event says so", func() (string, error) {
		pod, err := s.podOf(ctx, taken, "app", "app", node)
		if err != nil {
			return "", err
		}
		if !injected(pod) {
			return "", errors.New("the webhook left it alone")
		}
		said, err := s.event(ctx, pod, irsaVariable)
		return said, errors.Join(err, s.remove(ctx, pod))
	})
	s.check("a pod of a Namespace that asks is left alone, and gets its role here", func() (string, error) {
		pod, err := s.podOf(ctx, spared, "app", "app", node)
		if err != nil {
			return "", err
		}
		if injected(pod) {
			return "", errors.New("the webhook took it")
		}
		return "", errors.Join(s.gets(ctx, pod, spared, byWebIdentity), s.remove(ctx, pod))
	})
	webhooks := s.kube.Admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	return webhooks.Delete(ctx, "pod-identity-webhook", metav1.DeleteOptions{})
}

func injected(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == irsaVariable })
}

// serveWebhook has the API server ask, about every pod but those with the label, a server that does what
// https://github.com/aws/amazon-eks-pod-identity-webhook does, registered as its users register it.
func (s *stage) serveWebhook(ctx context.Context) error {
	address := netip.AddrPortFrom(kube.Outside(), webhookPort)
	certificate, authority, err := s.kube.Certificate(address.Addr())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address.String())
	if err != nil {
		return fmt.Errorf("listen outside of the nodes: %w", err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(s.review), TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = server.ServeTLS(l, "", "") }() // until the sandbox ends
	_, err = s.kube.Admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx,
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "pod-identity-webhook"},
			Webhooks: []admissionregistrationv1.MutatingWebhook{{
				Name:                    "pod-identity-webhook.amazonaws.com",
				FailurePolicy:           new(admissionregistrationv1.Ignore),
				SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
				AdmissionReviewVersions: []string{"v1"},
				ClientConfig: admissionregistrationv1.WebhookClientConfig{
					URL: new("https://" + address.String() + "/mutate"), CABundle: authority,
				},
				ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: skipLabel, Operator: metav1.LabelSelectorOpDoesNotExist},
				}},
				Rules: []admissionregistrationv1.RuleWithOperations{{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule: admissionregistrationv1.Rule{
						APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"},
					},
				}},
			}},
		}, metav1.CreateOptions{})
	return err
}

// review gives pods of ServiceAccounts with the IRSA annotation the variables that lead SDKs to STS.
func (s *stage) review(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	var pod corev1.Pod
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "not an AdmissionReview", http.StatusBadRequest)
		return
	}
	if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	response := &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	account, err := s.kube.Admin.CoreV1().ServiceAccounts(review.Request.Namespace).Get(
		r.Context(), pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err == nil && account.Annotations[irsaKey] != "" {
		patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/spec/containers/0/env", "value": []corev1.EnvVar{
			{Name: irsaVariable, Value: "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"},
			{Name: "AWS_ROLE_ARN", Value: account.Annotations[irsaKey]},
		}}})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		response.Patch, response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
	}
	w.Header().Set("Content-Type", "application/json")
	// The API server may have left.
	_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
}
