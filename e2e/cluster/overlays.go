package main

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/internal/awstest"
)

// overlays applies the other overlays one after the other, over whichever was there, and serves pods from each.
func (s *stage) overlays(ctx context.Context) error {
	if err := s.drop(ctx, "podrole-tokens", "podrole-startup-taint"); err != nil {
		return err
	}
	return errors.Join(s.assumeRole(ctx), s.vanilla(ctx), s.webhookSkip(ctx))
}

// assumeRole is kube2iam's way: a pod names a role, bare, that trusts the nodes, and its Namespace permits it.
func (s *stage) assumeRole(ctx context.Context) error {
	const legacy, closed = "legacy", "closed"
	permitted := map[string]string{"iam.amazonaws.com/allowed-roles": `["legacy-*"]`}
	if err := s.addNamespace(ctx, legacy, permitted, nil); err != nil {
		return err
	}
	if err := s.addNamespace(ctx, closed, nil, nil); err != nil {
		return err
	}
	if err := s.aws.trustPrincipal("legacy-app", nodeRole); err != nil {
		return err
	}
	if !s.check("kubectl apply -k manifests/overlays/assume-role", func() (string, error) {
		return "", s.deploy(ctx, overlay("assume-role"))
	}) {
		return nil
	}
	annotations := map[string]string{"iam.amazonaws.com/role": "legacy-app"}
	for _, n := range s.kube.Nodes {
		s.check("a pod on "+n.Name+" gets the role that it names, by the node's own", func() (string, error) {
			return "", s.annotated(ctx, legacy, n.Name, annotations, func(pod *corev1.Pod) error {
				return s.gets(ctx, pod, "legacy-app", byAssumeRole)
			})
		})
	}
	s.check("a pod in a Namespace that permits no role gets none, and an Event says what to do", func() (said string, err error) {
		return said, s.annotated(ctx, closed, s.kube.Nodes[0].Name, annotations, func(pod *corev1.Pod) error {
			if err := s.refused(ctx, pod); err != nil {
				return err
			}
			said, err = s.event(ctx, pod, "iam.amazonaws.com/allowed-roles")
			return err
		})
	})
	return nil
}

// annotated runs a pod with annotations for as long as use takes.
func (s *stage) annotated(
	ctx context.Context, namespace, node string, annotations map[string]string, use func(*corev1.Pod) error,
) error {
	if err := s.addPod(ctx, namespace, "app", podSpec("default", node, "serve"), annotations); err != nil {
		return err
	}
	pod, err := s.running(ctx, namespace, "app")
	if err != nil {
		return err
	}
	return errors.Join(use(pod), s.remove(ctx, pod))
}

// vanilla is a cluster that AWS knows nothing of, with a key pair of its own.
func (s *stage) vanilla(ctx context.Context) error {
	const namespace = "vanilla"
	const user = "arn:aws:iam::" + account + ":user/podrole"
	key, err := s.aws.AddUser(awstest.User{ARN: user, Permissions: awstest.Permit("sts:AssumeRole")})
	if err != nil {
		return err
	}
	if err := s.aws.trustPrincipal("vanilla-app", user); err != nil {
		return err
	}
	permitted := map[string]string{"iam.amazonaws.com/permitted": "arn:aws:iam::[0-9]+:role/vanilla-.*"}
	if err := s.addNamespace(ctx, namespace, permitted, nil); err != nil {
		return err
	}
	if err := s.addAccount(ctx, namespace, "app", map[string]string{"podrole.io/role-arn": "vanilla-app"}); err != nil {
		return err
	}
	if !s.check("kubectl apply -k manifests/overlays/vanilla-localstack", func() (string, error) {
		return "", s.deploy(ctx, deployment{
			resources: []string{"manifests/overlays/vanilla-localstack"},
			secret:    []string{"AWS_ACCESS_KEY_ID=" + key.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + key.SecretAccessKey},
			settings: []string{
				"PODROLE_STS_ENDPOINT=" + endpoint(), "PODROLE_STS_REGION=" + region,
				"PODROLE_LOG_LEVEL=debug", "PODROLE_BASE_ROLE_ARN=arn:aws:iam::" + account + ":role/",
			},
		})
	}) {
		return nil
	}
	for _, n := range s.kube.Nodes {
		s.check(fmt.Sprintf("a pod on %s gets its ServiceAccount's role, by the key pair", n.Name), func() (string, error) {
			pod, err := s.podOf(ctx, namespace, "app-"+n.Name, "app", n.Name)
			if err != nil {
				return "", err
			}
			return "", errors.Join(s.gets(ctx, pod, "vanilla-app", byAssumeRole), s.remove(ctx, pod))
		})
	}
	return nil
}
