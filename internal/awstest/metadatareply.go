package awstest

import (
	"net/http"
	"strconv"
)

// metadataReply is an answer of the metadata service.
type metadataReply struct {
	status int
	body   string
	kind   string // content type; text/plain when empty
	ttl    int    // seconds that the token sent or issued has left; 0 without one
	allow  string
}

func (a metadataReply) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	if a.kind != "" {
		h.Set("Content-Type", a.kind)
	}
	h.Set("Server", "EC2ws")
	h.Set("Accept-Ranges", "none")
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	h.Set("Connection", "close") // as the real service does, on every answer
	if a.ttl > 0 {
		h.Set(ttlHeader, strconv.Itoa(a.ttl))
	}
	if a.allow != "" {
		h.Set("Allow", a.allow)
	}
	w.WriteHeader(a.status)
	// A client that left is no concern of ours.
	_, _ = w.Write([]byte(a.body))
}

// refusal is an XHTML page, as the service answers all its errors.
func refusal(status int) metadataReply {
	title := strconv.Itoa(status) + " - " + http.StatusText(status)
	if status == http.StatusBadRequest {
		title = "400 - Missing or Invalid Parameters"
	}
	return metadataReply{status: status, kind: "text/html", body: `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
		 "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>` + title + `</title>
 </head>
 <body>
  <h1>` + title + `</h1>
 </body>
</html>
`}
}
