package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

// muddle is the namespace of pods that something is wrong with. It permits roles whose names begin with its own.
const muddle = "muddle"

// fault is what can be wrong with a pod, and what its operator is to be told.
type fault struct {
	name, about string // the former of the pod and its ServiceAccount
	names       string // what the ServiceAccount names as its role; empty: nothing
	role        string // that the pod should have
	trusts      string // whom the role trusts; empty: its ServiceAccount, as it should
	injected    bool   // the pod has what the IRSA webhook injects

	reason string   // of the Event
	says   []string // parts of what is said: what is wrong, and what to do
	mend   func(context.Context) error
}

// faults are those that misconfigured makes.
func (s *stage) faults() []fault {
	kubectl := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := s.kube.Kubectl(ctx, args...); return err }
	}
	annotate := func(account string) func(context.Context) error {
		return kubectl("-n", muddle, "annotate", "--overwrite", "serviceaccount", account,
			roleKey+"="+roleARN("muddle-"+account))
	}
	return []fault{
		{
			name: "malformed", about: "a role ARN that is malformed",
			names: "arn:aws:iam::1111:role/muddle-malformed", role: "muddle-malformed",
			reason: "PodroleDenied",
			says: []string{
				roleKey + " of ServiceAccount muddle/malformed",
				"is not the ARN of an IAM role; want arn:aws:iam::ACCOUNT:role/[PATH/]NAME",
			},
			mend: annotate("malformed"),
		},
		{
			name: "unpermitted", about: "a role that the Namespace does not permit",
			names: roleARN("elsewhere"), role: "elsewhere",
			reason: "PodroleDenied",
			says: []string{
				"Namespace muddle does not permit " + roleARN("elsewhere"), "extend its annotation iam.amazonaws.com/allowed-roles",
			},
			mend: kubectl("annotate", "--overwrite", "namespace", muddle,
				fmt.Sprintf(`iam.amazonaws.com/allowed-roles=["%s", "%s"]`, roleARN("muddle-*"), roleARN("elsewhere"))),
		},
		{
			name: "distrusted", about: "a role whose trust policy refuses",
			names: roleARN("muddle-distrusted"), role: "muddle-distrusted", trusts: "somebody-else",
			reason: "PodroleRefusedByAWS",
			says: []string{
				"AccessDenied", "trust policy must allow sts:AssumeRoleWithWebIdentity", "system:serviceaccount:muddle:distrusted",
			},
			mend: func(context.Context) error { return s.aws.trustAccount("muddle-distrusted", muddle, "distrusted") },
		},
		{
			name: "roleless", about: "no role, and it asks for credentials", role: "muddle-roleless",
			reason: "PodroleNoRole",
			says:   []string{"ServiceAccount muddle/roleless names no role", "annotate it with " + roleKey},
			mend:   annotate("roleless"),
		},
		{
			name: "bypassed", about: "IRSA variables in its environment",
			names: roleARN("muddle-bypassed"), role: "muddle-bypassed", injected: true,
			reason: "PodroleBypassed",
			says:   []string{irsaVariable, "rename the ServiceAccount's annotation to " + roleKey, "restart the pod"},
		},
	}
}

// misconfigured makes what operators get wrong, and reads what they would read: kubectl get events, and the agent's log.
func (s *stage) misconfigured(ctx context.Context) error {
	permitted := map[string]string{"iam.amazonaws.com/allowed-roles": `["` + roleARN("muddle-*") + `"]`}
	if err := s.addNamespace(ctx, muddle, permitted, nil); err != nil {
		return err
	}
	node := s.kube.Nodes[0]
	quiet, err := s.podOf(ctx, muddle, "quiet", "default", node.Name)
	if err != nil {
		return err
	}
	pods := []*corev1.Pod{quiet}
	for _, f := range s.faults() {
		pod, err := s.faulty(ctx, f, node)
		if err != nil {
			return fmt.Errorf("make %s: %w", f.about, err)
		}
		pods = append(pods, pod)
		s.check(f.about+": kubectl get events and the agent's log say so, and what to do", func() (string, error) {
			if !f.injected { // who asks in spite of the variables gets the role
				if err := s.refused(ctx, pod); err != nil {
					return "", err
				}
			}
			return s.told(ctx, pod, node, f)
		})
		if f.mend != nil {
			s.check(f.about+": mended, and the pod gets its role as it stands", func() (string, error) {
				return "", errors.Join(f.mend(ctx), s.gets(ctx, pod, f.role, byWebIdentity))
			})
		}
	}
	s.check("no role, and it does not ask: no Event", func() (string, error) {
		said, err := s.kube.Kubectl(ctx, "-n", muddle, "get", "events",
			"--field-selector=source=podrole,involvedObject.name=quiet")
		if err == nil && !strings.HasPrefix(said, "No resources found") {
			err = errors.New(said)
		}
		return "", err
	})
	return s.remove(ctx, pods...)
}

// faulty makes a role, a ServiceAccount and a pod with a fault, and returns the pod when it runs.
func (s *stage) faulty(ctx context.Context, f fault, node *kube.Node) (*corev1.Pod, error) {
	if err := s.aws.trustAccount(f.role, muddle, cmp.Or(f.trusts, f.name)); err != nil {
		return nil, err
	}
	var annotations map[string]string
	if f.names != "" {
		annotations = map[string]string{roleKey: f.names}
	}
	write := func(ctx context.Context) error { return s.addAccount(ctx, muddle, f.name, annotations) }
	err := write(ctx)
	if apierrors.IsInvalid(err) { // as it should be, where the policy is
		err = s.letIn(ctx, write)
	}
	if err != nil {
		return nil, err
	}
	spec := podSpec(f.name, node.Name, "serve")
	if f.injected {
		const file = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"
		spec.Containers[0].Env = []corev1.EnvVar{{Name: irsaVariable, Value: file}}
	}
	if err := s.addPod(ctx, muddle, f.name, spec, nil); err != nil {
		return nil, err
	}
	return s.running(ctx, muddle, f.name)
}

// told waits until one line of kubectl get events, as it is without any option, says all that is to be said about a pod,
// and one record of the agent's log too, and returns the former.
func (s *stage) told(ctx context.Context, pod *corev1.Pod, node *kube.Node, f fault) (said string, err error) {
	err = eventually(ctx, 10*time.Second, func(ctx context.Context) error {
		events, err := s.kube.Kubectl(ctx, "-n", pod.Namespace, "get", "events")
		if err != nil {
			return err
		}
		event, err := lineWith(events, append([]string{" pod/" + pod.Name + " ", " Warning ", " " + f.reason + " "}, f.says...))
		if err != nil {
			return fmt.Errorf("kubectl get events: %w", err)
		}
		agents, err := s.agents(ctx)
		if err != nil {
			return err
		}
		log, err := s.kube.Kubectl(ctx, "-n", agentNamespace, "logs", agents[node.Name].Name)
		if err != nil {
			return err
		}
		said = event
		return logged(log, pod, f)
	})
	return said, err
}

// lineWith returns the line of what kubectl printed that has all parts, the first of which says what it is about.
func lineWith(text string, parts []string) (string, error) {
	var about strings.Builder
	for line := range strings.Lines(text) {
		if hasAll(line, parts) {
			return strings.Join(strings.Fields(line), " "), nil
		}
		if strings.Contains(line, parts[0]) {
			about.WriteString(line)
		}
	}
	return "", fmt.Errorf("no line has %q:\n%s", parts[1:], about.String())
}

func hasAll(text string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}

// logged holds that a record of an agent's log, a warning or worse, names a pod and says all that is to be said about it.
func logged(log string, pod *corev1.Pod, f fault) error {
	var about strings.Builder
	for line := range strings.Lines(log) {
		var record struct {
			Level slog.Level
			Pod   struct{ Namespace, Name string }
		}
		err := json.Unmarshal([]byte(line), &record)
		if err != nil || record.Pod.Namespace != pod.Namespace || record.Pod.Name != pod.Name {
			continue
		}
		if record.Level >= slog.LevelWarn && hasAll(line, f.says) {
			return nil
		}
		about.WriteString(line)
	}
	return fmt.Errorf("no warning in the agent's log has %q:\n%s", f.says, about.String())
}
