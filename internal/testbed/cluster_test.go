package testbed_test

import (
	"testing"

	"github.com/podrole/podrole/internal/kubetest"
	"github.com/podrole/podrole/internal/testbed"
)

// TestAuthoritiesAreModelled: the API server outside of the node can play what the manifests install.
func TestAuthoritiesAreModelled(t *testing.T) {
	direct := testbed.DirectTokens("../../manifests")
	if _, err := kubetest.ReadRBAC(direct.RBAC...); err != nil {
		t.Error(err)
	}
	if _, err := kubetest.ReadPolicies(direct.Policies...); err != nil {
		t.Error(err)
	}
}
