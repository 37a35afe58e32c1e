package kubetest

import (
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// negotiate picks the first media type of the Accept headers that is modelled, which is JSON only, and reports whether
// it asks for metadata instead of whole objects. form is the type that metadata must be asked for as: a list differs
// from a watch, whose events are single objects
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches).
func negotiate(accept []string, form string) (metadata bool, err error) {
	if len(accept) == 0 {
		return false, nil
	}
	for clause := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		mediaType, params, err := mime.ParseMediaType(clause)
		if err != nil {
			continue
		}
		switch mediaType {
		case runtime.ContentTypeJSON, "application/*", "*/*":
		default:
			continue
		}
		switch {
		case params["as"] == "":
			return false, nil
		case params["as"] == form && params["g"] == metav1.GroupName && params["v"] == "v1":
			return true, nil
		}
	}
	return false, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", schema.GroupResource{}, "",
		"only JSON is served, of whole objects or as="+form, 0, false)
}
