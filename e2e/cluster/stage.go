package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/ask"
	"github.com/podrole/podrole/e2e/cluster/kube"
)

const (
	// shop is the namespace of most pods.
	shop = "shop"
	// agentNamespace and agentName are the agent's, as in the manifests.
	agentNamespace, agentName = "podrole", "podrole"
)

// stage is the cluster with its AWS and its agents.
type stage struct {
	settings
	*report
	kube *kube.Cluster
	aws  *aws
	// before is how many leaks there were before there was an agent, when leaking is what pods do.
	before int
}

// agents returns the agents' pods by node.
func (s *stage) agents(ctx context.Context) (map[string]corev1.Pod, error) {
	pods, err := s.kube.Admin.CoreV1().Pods(agentNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + agentName,
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	byNode := map[string]corev1.Pod{}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			byNode[p.Spec.NodeName] = p
		}
	}
	return byNode, nil
}

// addNamespace creates a Namespace.
func (s *stage) addNamespace(ctx context.Context, name string, annotations, labels map[string]string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations, Labels: labels}}
	_, err := s.kube.Admin.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	return err
}

// addAccount creates a ServiceAccount with annotations, if any.
func (s *stage) addAccount(ctx context.Context, namespace, name string, annotations map[string]string) error {
	accounts := s.kube.Admin.CoreV1().ServiceAccounts(namespace)
	meta := metav1.ObjectMeta{Name: name, Annotations: annotations}
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
	return err
}

// addRole creates a ServiceAccount of namespace shop, and a role of the same name that trusts it.
func (s *stage) addRole(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := s.aws.trustAccount(name, shop, name); err != nil {
			return err
		}
		if err := s.addAccount(ctx, shop, name, map[string]string{"podrole.io/role-arn": roleARN(name)}); err != nil {
			return err
		}
	}
	return nil
}

// podSpec is a pod of the client's image on a node, or on whichever if node is empty.
func podSpec(account, node string, args ...string) corev1.PodSpec {
	spec := corev1.PodSpec{
		ServiceAccountName:            account,
		RestartPolicy:                 corev1.RestartPolicyNever,
		TerminationGracePeriodSeconds: new(int64(0)),
		Containers: []corev1.Container{{
			Name: "client", Image: clientImage, ImagePullPolicy: corev1.PullNever, Args: args,
		}},
	}
	if node != "" {
		spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	return spec
}

// addPod creates a pod, whose ServiceAccount may take a moment to be known to admission, and does not wait for it.
func (s *stage) addPod(ctx context.Context, namespace, name string, spec corev1.PodSpec, annotations map[string]string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Spec: spec}
	return eventually(ctx, 10*time.Second, func(ctx context.Context) error {
		_, err := s.kube.Admin.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
		if err != nil && !apierrors.IsForbidden(err) {
			return final(err)
		}
		return err
	})
}

// podOf creates a pod NAME on a node that can be asked, and returns it when it runs.
func (s *stage) podOf(ctx context.Context, namespace, name, account, node string, args ...string) (*corev1.Pod, error) {
	if err := s.addPod(ctx, namespace, name, podSpec(account, node, append([]string{"serve"}, args...)...), nil); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", name, err)
	}
	return s.running(ctx, namespace, name)
}

// running waits until a pod runs and answers: for as long as a kubelet may need that was without an API server, whose
// attempts become as rare as one a minute.
func (s *stage) running(ctx context.Context, namespace, name string) (pod *corev1.Pod, err error) {
	err = eventually(ctx, 2*time.Minute, func(ctx context.Context) (err error) {
		pod, err = s.kube.Admin.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
			return fmt.Errorf("pod %s is %s: %s", name, pod.Status.Phase, waitingFor(pod))
		}
		_, err = s.load(ctx, pod)
		return err
	})
	return pod, err
}

// waitingFor says why a pod does not run.
func waitingFor(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			return c.State.Waiting.Reason + " " + c.State.Waiting.Message
		}
	}
	return pod.Status.Message
}

// remove deletes pods, and returns when they are gone.
func (s *stage) remove(ctx context.Context, pods ...*corev1.Pod) error {
	var errs []error
	for _, p := range pods {
		err := s.kube.Admin.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
		if err == nil {
			err = eventually(ctx, time.Minute, func(ctx context.Context) error {
				_, err := s.kube.Admin.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return nil
				}
				return fmt.Errorf("pod %s is still there: %w", p.Name, errors.Join(err))
			})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// credentials has a pod ask for credentials.
func (s *stage) credentials(ctx context.Context, pod *corev1.Pod) (o ask.Outcome, err error) {
	return o, from(ctx, pod, "/credentials", &o)
}

// load returns what a pod that goes on asking has found.
func (s *stage) load(ctx context.Context, pod *corev1.Pod) (l ask.Load, err error) {
	return l, from(ctx, pod, "/load", &l)
}

// from asks a pod's own server.
func from(ctx context.Context, pod *corev1.Pod, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	url := "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask pod %s: %w", pod.Name, err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("ask pod %s: %w", pod.Name, err)
	}
	return nil
}

// holds says what is wrong with an outcome that should be credentials of a role.
func (s *stage) holds(o ask.Outcome, role, action string) error {
	if o.Error != "" {
		return fmt.Errorf("%s: %s, after %s", o.Step, o.Error, o.Took.Round(time.Millisecond))
	}
	session, err := s.aws.minted(o.AccessKeyID)
	if err != nil {
		return err
	}
	if session.RoleARN != roleARN(role) || session.Action != action {
		return fmt.Errorf("WRONG ROLE: got %s by %s, want %s by %s", session.RoleARN, session.Action, roleARN(role), action)
	}
	return nil
}

// gets waits until a pod gets its role's credentials.
func (s *stage) gets(ctx context.Context, pod *corev1.Pod, role, action string) error {
	return eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		o, err := s.credentials(ctx, pod)
		if err != nil {
			return err
		}
		err = s.holds(o, role, action)
		if err != nil && strings.HasPrefix(err.Error(), "WRONG ROLE") {
			return final(err)
		}
		return err
	})
}

// refused holds that a pod gets no credentials but status 404.
func (s *stage) refused(ctx context.Context, pod *corev1.Pod) error {
	return eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		o, err := s.credentials(ctx, pod)
		switch {
		case err != nil:
			return err
		case o.AccessKeyID != "":
			return final(fmt.Errorf("got %s, a session of role %s", o.AccessKeyID, o.Role))
		case !strings.Contains(o.Error, "404"): // not decided on yet
			return fmt.Errorf("%s: %s", o.Step, o.Error)
		}
		return nil
	})
}

// noLeaks holds that nobody but the nodes was at the metadata service since there is an agent.
func (s *stage) noLeaks() (string, error) { return "", s.leaksSince(s.before) }

func (s *stage) leaksSince(before int) error {
	if all := s.aws.leaks(); len(all) > before {
		return fmt.Errorf("LEAKED %d times, the first: %+v", len(all)-before, all[before])
	}
	return nil
}

// patience is how long the API server may take to follow a change of its own rules.
const patience = 20 * time.Second

// errFinal marks an error that no further try can mend.
var errFinal = errors.New("")

func final(err error) error { return fmt.Errorf("%w%w", err, errFinal) }

// eventually tries until it succeeds, fails finally, or the time is up.
func eventually(ctx context.Context, within time.Duration, try func(context.Context) error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := try(ctx)
		if err == nil || errors.Is(err, errFinal) {
			return err
		}
		select {
		case <-deadline.C:
			return fmt.Errorf("not after %s: %w", within, err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-again.C:
		}
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// all calls work for 0 to n-1 at once, and returns their errors.
func all(n int, work func(i int) error) error {
	errs := make([]error, n)
	var workers sync.WaitGroup
	for i := range n {
		workers.Go(func() { errs[i] = work(i) })
	}
	workers.Wait()
	return errors.Join(errs...)
}
