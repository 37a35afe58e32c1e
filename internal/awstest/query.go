package awstest

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strings"
	"time"
)

// responseMetadata ends every answer of the query protocol.
type responseMetadata struct {
	RequestID string `xml:"RequestId"`
}

func xmlReply(status int, outcome string, value any) reply {
	// The values are structs of strings, numbers and times; they always marshal.
	body, _ := xml.MarshalIndent(value, "", "  ")
	// AWS leaves quotes in text alone, and some clients read messages with less than an XML parser.
	text := strings.NewReplacer("&#39;", "'", "&#34;", `"`).Replace(string(body))
	return reply{
		status: status, outcome: outcome, body: []byte(text + "\n"),
		header: http.Header{"Content-Type": {"text/xml"}},
	}
}

func jsonReply(status int, outcome, contentType string, value any) reply {
	// The values are structs and maps of strings, numbers and byte slices; they always marshal.
	body, _ := json.Marshal(value)
	return reply{status: status, outcome: outcome, body: body, header: http.Header{"Content-Type": {contentType}}}
}

// queryError renders a refusal as the query protocol does.
func queryError(err *apiError, requestID string) reply {
	fault := "Sender"
	if err.status >= http.StatusInternalServerError {
		fault = "Receiver"
	}
	return xmlReply(err.status, err.code, struct {
		XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
		Type      string   `xml:"Error>Type"`
		Code      string   `xml:"Error>Code"`
		Message   string   `xml:"Error>Message"`
		RequestID string   `xml:"RequestId"`
	}{Type: fault, Code: err.code, Message: err.message, RequestID: requestID})
}

// timestamp renders a time in whole seconds of UTC, the one form that every SDK reads.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
