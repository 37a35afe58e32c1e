package kubetest

import (
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/scheme"
)

// maxBody is the size of a request that is read.
const maxBody = 1 << 20

// readBody returns the body as it is.
func (x *exchange) readBody() ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, maxBody))
	if err != nil {
		return nil, apierrors.NewRequestEntityTooLargeError(err.Error())
	}
	return body, nil
}

// readDryRun reads whether the request is to change nothing. Of the options of a write, this one is modelled.
func (x *exchange) readDryRun() error {
	of := x.r.URL.Query()["dryRun"]
	if errs := validation.ValidateDryRun(field.NewPath("dryRun"), of); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "Options"}, "", errs)
	}
	x.dryRun = len(of) > 0
	return nil
}

// decodeBody returns the object in the body, JSON or protobuf.
func (x *exchange) decodeBody() (runtime.Object, error) {
	body, err := x.readBody()
	if err != nil {
		return nil, err
	}
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, apierrors.NewBadRequest("decode body: " + err.Error())
	}
	return decoded, nil
}
