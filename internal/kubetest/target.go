package kubetest

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
)

// target is what a request is about, in the authorizer's terms
// (https://kubernetes.io/docs/reference/access-authn-authz/authorization/#request-attributes).
type target struct {
	isCore                bool // /api/v1
	path                  string
	verb                  string
	group, version        string
	namespace             string
	resource, subresource string // resource is empty for paths that name none
	name                  string
	fields                fields.Selector // of a list or a watch; nil: none
}

// is reports whether t is about that resource, with its subresource, by that verb. All are v1 here.
func (t target) is(group, resource, verb string) bool {
	return t.isCore == (group == "") && t.group == group && t.version == "v1" &&
		t.fullResource() == resource && t.verb == verb
}

func (t target) fullResource() string {
	if t.subresource == "" {
		return t.resource
	}
	return t.resource + "/" + t.subresource
}

// parseTarget reads method, path and query. It never fails: what is no resource has none, and nobody may use it.
func parseTarget(r *http.Request) target {
	t := target{path: r.URL.Path}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api" && parts[1] == "v1":
		t.isCore, t.version = true, "v1"
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		t.group, t.version = parts[1], parts[2]
		parts = parts[3:]
	default:
		t.verb = strings.ToLower(r.Method)
		return t
	}
	switch {
	case parts[0] == "namespaces" && len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize":
		t.namespace = parts[1]
		parts = parts[2:]
	case parts[0] == "namespaces" && len(parts) > 1:
		t.namespace = parts[1] // and its own name, too
	}
	t.resource = parts[0]
	if len(parts) > 1 {
		t.name = parts[1]
	}
	if len(parts) > 2 {
		t.subresource = strings.Join(parts[2:], "/")
	}
	t.verb = verbOf(r, t.name == "")
	if t.verb == "list" || t.verb == "watch" {
		if s, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector")); err == nil {
			t.fields = s
			if t.name == "" { // a selector that leaves one name is as good as that name to the authorizer
				t.name, _ = s.RequiresExactMatch("metadata.name")
			}
		}
	}
	return t
}

func verbOf(r *http.Request, collection bool) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if w := r.URL.Query().Get("watch"); w == "true" || w == "1" {
			return "watch"
		}
		if collection {
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if collection {
			return "deletecollection"
		}
		return "delete"
	default:
		return strings.ToLower(r.Method)
	}
}
