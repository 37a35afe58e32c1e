package awstest

import (
	"encoding/json"
	"net/http"
	"strings"
)

// amzJSON is the content type of the JSON 1.1 protocol
// (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html).
const amzJSON = "application/x-amz-json-1.1"

// targetAction reads the operation from X-Amz-Target: PREFIX.OPERATION.
func targetAction(req *request, prefix string) string {
	operation, ok := strings.CutPrefix(req.http.Header.Get("X-Amz-Target"), prefix+".")
	if !ok {
		return ""
	}
	return operation
}

func decodeJSON(req *request, into any) error {
	if err := json.Unmarshal(req.body, into); err != nil {
		return badRequest("SerializationException", "The request body cannot be read as JSON of this operation.")
	}
	return nil
}

// jsonError renders a refusal as JSON services do: other names for the common codes, and 400 for all of the client's
// faults.
func jsonError(err *apiError) reply {
	status, code := err.status, err.code
	switch code {
	case codeSignature:
		code = "InvalidSignatureException"
	case codeInvalidClient:
		code = "UnrecognizedClientException"
	case codeExpiredToken, codeMissingAuth, codeIncomplete, codeThrottling, codeAccessDenied:
		code += "Exception"
	case codeValidation:
		code = "ValidationException"
	}
	if status < http.StatusInternalServerError {
		status = http.StatusBadRequest
	}
	answer := jsonReply(status, code, amzJSON, map[string]string{"__type": code, "message": err.message})
	return answer
}
