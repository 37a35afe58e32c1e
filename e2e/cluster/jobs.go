package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/ask"
)

const (
	jobCount, jobBurst = 50, 10
	jobAccounts        = 5 // taken in turn by the Jobs
)

// jobs runs Jobs whose only instruction is to ask, while STS is slow.
func (s *stage) jobs(ctx context.Context) error {
	for _, latency := range []time.Duration{400 * time.Millisecond, 1500 * time.Millisecond} {
		if err := s.jobsWith(ctx, "jobs", latency); err != nil {
			return err
		}
	}
	return nil
}

// jobOutcome is what became of one Job's pod.
type jobOutcome struct {
	ask.Outcome
	account, node string
	problem       error
}

// jobsWith runs Jobs of fresh ServiceAccounts, which no node has a session for, and whose names begin with prefix.
func (s *stage) jobsWith(ctx context.Context, prefix string, latency time.Duration) error {
	accounts := make([]string, jobAccounts)
	for i := range accounts {
		accounts[i] = fmt.Sprintf("%s-%dms-%d", prefix, latency.Milliseconds(), i)
	}
	if err := s.addRole(ctx, accounts...); err != nil {
		return err
	}
	off, err := s.aws.slow(latency)
	if err != nil {
		return err
	}
	defer off()

	var warm, first []jobOutcome
	seen := map[[2]string]bool{} // node and ServiceAccount of earlier bursts
	for begin := 0; begin < jobCount; begin += jobBurst {
		burst, err := s.burst(ctx, accounts, begin)
		if err != nil {
			return err
		}
		for _, o := range burst {
			if seen[[2]string{o.node, o.account}] {
				warm = append(warm, o)
			} else {
				first = append(first, o)
			}
		}
		for _, o := range burst {
			seen[[2]string{o.node, o.account}] = true
		}
	}
	s.check(fmt.Sprintf("STS takes %s: every pod whose ServiceAccount was on its node before succeeds at the first try", latency),
		func() (string, error) { return summary(warm), problems(warm) })
	s.check(fmt.Sprintf("STS takes %s: the first of their ServiceAccount on a node are told nothing that SDKs take for good", latency),
		func() (string, error) { return summary(first), finals(first) })
	s.check(fmt.Sprintf("STS takes %s: nobody gets another's role", latency), func() (string, error) {
		for _, o := range slices.Concat(warm, first) {
			if o.problem != nil && o.Error == "" {
				return "", o.problem
			}
		}
		return "", nil
	})
	return nil
}

// burst runs some Jobs at once and returns what became of them.
func (s *stage) burst(ctx context.Context, accounts []string, begin int) ([]jobOutcome, error) {
	outcomes := make([]jobOutcome, jobBurst)
	return outcomes, all(jobBurst, func(i int) error {
		account := accounts[(begin+i)%len(accounts)]
		job := &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", account, begin+i)},
			Spec: batchv1.JobSpec{
				BackoffLimit: new(int32(0)),
				Template:     corev1.PodTemplateSpec{Spec: podSpec(account, "", "first")},
			},
		}
		if _, err := s.kube.Admin.BatchV1().Jobs(shop).Create(ctx, job, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create Job: %w", err)
		}
		pod, text, err := s.lastWords(ctx, metav1.ListOptions{LabelSelector: "job-name=" + job.Name})
		if err != nil {
			return fmt.Errorf("run %s: %w", job.Name, err)
		}
		o := &outcomes[i]
		o.account, o.node = account, pod.Spec.NodeName
		if err := json.Unmarshal([]byte(text), &o.Outcome); err != nil {
			return fmt.Errorf("read report %q of %s: %w", text, job.Name, err)
		}
		if o.problem = s.holds(o.Outcome, account, byWebIdentity); o.problem != nil {
			o.problem = fmt.Errorf("%s on %s: %w", job.Name, o.node, o.problem)
		}
		background := metav1.DeletePropagationBackground
		return s.kube.Admin.BatchV1().Jobs(shop).Delete(ctx, job.Name, metav1.DeleteOptions{PropagationPolicy: &background})
	})
}

// lastWords waits for a pod to end, and returns it with its termination message.
func (s *stage) lastWords(ctx context.Context, which metav1.ListOptions) (pod *corev1.Pod, text string, err error) {
	err = eventually(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := s.kube.Admin.CoreV1().Pods(shop).List(ctx, which)
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Terminated != nil {
					pod, text = &p, c.State.Terminated.Message
					return nil
				}
			}
		}
		return errors.New("its pod has not ended")
	})
	return pod, text, err
}

// problems returns what is wrong with outcomes that should all be good.
func problems(outcomes []jobOutcome) error {
	var errs []error
	for _, o := range outcomes {
		errs = append(errs, o.problem)
	}
	return errors.Join(errs...)
}

// finals returns what is wrong with outcomes that may have come too early, but not to a wrong end.
func finals(outcomes []jobOutcome) error {
	var errs []error
	for _, o := range outcomes {
		if o.Final() {
			errs = append(errs, o.problem)
		}
	}
	return errors.Join(errs...)
}

func summary(outcomes []jobOutcome) string {
	good, slowest := 0, time.Duration(0)
	for _, o := range outcomes {
		if o.problem == nil {
			good++
		}
		slowest = max(slowest, o.Took)
	}
	return fmt.Sprintf("%d of %d, slowest %s", good, len(outcomes), slowest.Round(100*time.Microsecond))
}
