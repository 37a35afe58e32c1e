package proxy

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// answer is a response before it is written.
type answer struct {
	status   int
	body     []byte
	page     string    // in place of body: an error page
	modified time.Time // Last-Modified; zero: since the server started
	ttl      int       // what is left of the request's token, in seconds; zero without a token
	allow    string    // Allow header
}

// ok returns the answer with status 200 and this body.
func ok(body []byte) answer { return answer{status: http.StatusOK, body: body} }

// answerTo returns the answer that err stands for, in JSON or as the metadata service gives it.
func answerTo(err error, json bool) answer {
	a := answer{status: statusOf(err)}
	r, ok := errors.AsType[*refusal](err)
	if ok {
		a.allow = r.allow
	}
	switch {
	case json:
		a.page = containerPage(a.status)
	case !ok || !r.bare:
		a.page = page(a.status)
	}
	return a
}

// header has room for the values of the headers of one response. net/http takes a slice per header; these share one
// array and one string.
type header struct {
	values [8]string
	n      int
	text   [64]byte
}

// set sets a header, whose key must be in canonical form.
func (h *header) set(to http.Header, key, value string) {
	h.values[h.n] = value
	to[key] = h.values[h.n : h.n+1 : h.n+1]
	h.n++
}

// write sends a with the headers that IMDS sends; Date comes from net/http. Content-Length is explicit because
// net/http chunks a longer body without, and Connection because it would leave it out of an HTTP/1.0 response. The
// container credentials endpoint, which answers JSON, sends the same ones.
func (h *header) write(w http.ResponseWriter, a answer, json bool, started time.Time) {
	length, contentType := len(a.body), "text/plain"
	if a.page != "" {
		length, contentType = len(a.page), "text/html"
	}
	if json {
		contentType = "application/json"
	}
	modified := a.modified
	if modified.IsZero() {
		modified = started
	}
	// The three values that differ between responses are parts of one string.
	text := strconv.AppendInt(h.text[:0], int64(length), 10)
	lengthEnd := len(text)
	text = modified.UTC().AppendFormat(text, http.TimeFormat)
	modifiedEnd := len(text)
	text = strconv.AppendInt(text, int64(a.ttl), 10)
	values := string(text)

	to := w.Header()
	h.set(to, "Accept-Ranges", "none")
	h.set(to, "Connection", "close")
	h.set(to, "Content-Length", values[:lengthEnd])
	h.set(to, "Content-Type", contentType)
	h.set(to, "Last-Modified", values[lengthEnd:modifiedEnd])
	h.set(to, "Server", "EC2ws")
	if a.ttl > 0 {
		h.set(to, "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", values[modifiedEnd:])
	}
	if a.allow != "" {
		h.set(to, "Allow", a.allow)
	}
	w.WriteHeader(a.status)
	// A client that has gone away has gone away: there is nobody to tell about a failed write.
	if a.page != "" {
		_, _ = io.WriteString(w, a.page)
		return
	}
	_, _ = w.Write(a.body)
}
