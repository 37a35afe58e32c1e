package awstest

import (
	"fmt"
	"net/http"
)

// apiError is a refusal in AWS's terms. Services that speak another dialect translate the code when they write it.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func badRequest(code, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

func forbidden(code, format string, args ...any) *apiError {
	return &apiError{http.StatusForbidden, code, fmt.Sprintf(format, args...)}
}

// Codes of refusals that every service makes, as STS spells them
// (https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html).
const (
	codeAccessDenied     = "AccessDenied"
	codeExpiredToken     = "ExpiredToken"
	codeIncomplete       = "IncompleteSignature"
	codeInvalidClient    = "InvalidClientTokenId"
	codeMissingAuth      = "MissingAuthenticationToken"
	codeRequestExpired   = "RequestExpired"
	codeSignature        = "SignatureDoesNotMatch"
	codeThrottling       = "Throttling"
	codeValidation       = "ValidationError"
	codeInvalidIdentity  = "InvalidIdentityToken"
	codeIDPCommunication = "IDPCommunicationError"
)
