package kubetest

import (
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// list answers with all that is selected, in one piece: a limit need not be honoured
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks).
func (x *exchange) list(s selection, options internalversion.ListOptions) error {
	version, err := parseVersion(options.ResourceVersion)
	if err != nil {
		return err
	}
	store := x.api.store
	store.mu.Lock()
	current, objects := store.version, store.selectLocked(s)
	store.mu.Unlock()
	switch {
	case options.Continue != "":
		return apierrors.NewResourceExpired("lists come in one piece: there is none to be continued")
	case version > current:
		return tooLarge(version, current)
	case options.ResourceVersionMatch == metav1.ResourceVersionMatchExact && version != current:
		return expired(version)
	}
	list := struct {
		metav1.TypeMeta
		Metadata metav1.ListMeta `json:"metadata"`
		Items    []any           `json:"items"`
	}{
		TypeMeta: metav1.TypeMeta{Kind: s.kind.gvk.Kind + "List", APIVersion: "v1"},
		Metadata: metav1.ListMeta{ResourceVersion: formatVersion(current)},
		Items:    make([]any, 0, len(objects)),
	}
	if x.metadata {
		list.TypeMeta = metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: metav1.SchemeGroupVersion.String()}
	}
	for _, o := range objects {
		list.Items = append(list.Items, x.present(o))
	}
	return x.answer(http.StatusOK, list)
}

// present returns o in the form that was asked for.
func (x *exchange) present(o object) object {
	if x.metadata {
		return partial(o)
	}
	return o
}

// parseVersion reads a resource version; none is zero, which is any.
func parseVersion(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("resource version %q is no number", s))
	}
	return v, nil
}

// expired is the 410 that makes a client list anew.
func expired(version uint64) *apierrors.StatusError {
	return apierrors.NewResourceExpired(fmt.Sprintf("resource version %d is too old", version))
}

// tooLarge is the answer about a version from the future; clients know it by its cause.
func tooLarge(version, current uint64) *apierrors.StatusError {
	err := apierrors.NewTimeoutError(fmt.Sprintf("resource version %d is larger than the current %d", version, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}
	return err
}
