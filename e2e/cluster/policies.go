package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// roleKey is the annotation of ServiceAccounts that names their role.
const roleKey = "podrole.io/role-arn"

// policies writes annotations, good and bad, and holds that the bad ones are refused with a remedy.
func (s *stage) policies(ctx context.Context) error {
	if err := s.addAccount(ctx, shop, "edited", nil); err != nil {
		return err
	}
	if err := s.addNamespace(ctx, "edited", nil, nil); err != nil {
		return err
	}
	const durationKey, externalKey = "podrole.io/session-duration", "iam.amazonaws.com/external-id"
	const globsKey, regexpKey = "iam.amazonaws.com/allowed-roles", "iam.amazonaws.com/permitted"
	good := map[string][]string{
		roleKey:     {roleARN("orders"), "arn:aws-cn:iam::111122223333:role/team/a+b=c@d", "orders", "/team/orders", ""},
		irsaKey:     {roleARN("orders"), ""},
		durationKey: {"900", "43200", "15m", "1h30m", "12h"},
		externalKey: {"ab", ""},
		globsKey:    {`["arn:aws:iam::111122223333:role/*"]`, `[ "a" , "b*" ]`, "[]"},
		regexpKey:   {".*", "^team-[a-z]+$", ""},
	}
	bad := map[string][]string{
		roleKey: {
			"arn:aws:iam::1111:role/orders", "arn:aws:iam::111122223333:user/orders", "two words", strings.Repeat("a", 65),
			"arn:aws:iam:eu-west-1:111122223333:role/orders", roleARN("orders") + " ", roleARN("orders") + "\n",
		},
		irsaKey:     {"arn:aws:iam::111122223333:role/", "arn:aws:sts::111122223333:assumed-role/orders/x"},
		durationKey: {"899", "43201", "13h", "5m", "forever", "", "1d", "-1h"},
		externalKey: {"a"},
		globsKey:    {`["a"`, `a, b`, `{"a": "b"}`, `["a",]`, ""},
		regexpKey:   {"(", "[a-", "a{2,1}"},
	}
	// The API server follows a new policy a moment after it was applied.
	err := eventually(ctx, patience, func(ctx context.Context) error {
		accounts, namespaces := s.annotate(ctx, roleKey, "not a role"), s.annotate(ctx, globsKey, "not a list")
		if apierrors.IsInvalid(accounts) && apierrors.IsInvalid(namespaces) {
			return nil
		}
		return errors.Join(errors.New("the policies are not in force"), s.annotate(ctx, roleKey, ""), s.annotate(ctx, globsKey, "[]"))
	})
	if err != nil {
		return err
	}
	for _, key := range []string{roleKey, irsaKey, durationKey, externalKey, globsKey, regexpKey} {
		s.check(fmt.Sprintf("%s: %d values are taken, %d refused", key, len(good[key]), len(bad[key])), func() (string, error) {
			for _, value := range good[key] {
				if err := s.annotate(ctx, key, value); err != nil {
					return "", fmt.Errorf("%q: %w", value, err)
				}
			}
			for _, value := range bad[key] {
				err := s.annotate(ctx, key, value)
				if !apierrors.IsInvalid(err) {
					return "", fmt.Errorf("%q is not refused by a policy: %w", value, err)
				}
				if !strings.Contains(err.Error(), key) {
					return "", fmt.Errorf("%q is refused without saying why: %w", value, err)
				}
			}
			return "", nil
		})
	}
	s.check("an object from before the policy can still be changed", func() (string, error) {
		return "", s.editOld(ctx)
	})
	return nil
}

// annotate sets an annotation of the Namespace or the ServiceAccount that is there for it.
func (s *stage) annotate(ctx context.Context, key, value string) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, key, value)
	var err error
	core := s.kube.Admin.CoreV1()
	if key == "iam.amazonaws.com/allowed-roles" || key == "iam.amazonaws.com/permitted" {
		_, err = core.Namespaces().Patch(ctx, "edited", types.MergePatchType, patch, metav1.PatchOptions{})
	} else {
		_, err = core.ServiceAccounts(shop).Patch(ctx, "edited", types.MergePatchType, patch, metav1.PatchOptions{})
	}
	return err
}

// editOld lets a bad annotation in and then changes something else.
func (s *stage) editOld(ctx context.Context) error {
	err := s.letIn(ctx, func(ctx context.Context) error { return s.annotate(ctx, roleKey, "two words") })
	if err != nil {
		return err
	}
	return s.annotate(ctx, "example.com/other", "changed")
}

// letIn writes what the policy of ServiceAccounts' annotations refuses, by taking its binding away for a moment.
func (s *stage) letIn(ctx context.Context, write func(context.Context) error) error {
	const name = "podrole-serviceaccount-annotations"
	bindings := s.kube.Admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	binding, err := bindings.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := bindings.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := eventually(ctx, patience, write); err != nil {
		return fmt.Errorf("without the policy: %w", err)
	}
	binding.ObjectMeta = metav1.ObjectMeta{Name: name, Labels: binding.Labels, Annotations: binding.Annotations}
	if _, err := bindings.Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return err
	}
	return eventually(ctx, patience, func(ctx context.Context) error {
		_, err := s.kube.Admin.CoreV1().ServiceAccounts(shop).Patch(ctx, "default", types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"podrole.io/role-arn":"two words"}}}`),
			metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if !apierrors.IsInvalid(err) {
			return fmt.Errorf("the policy is not back: %w", err)
		}
		return nil
	})
}
