package proxy

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An answer arrives whole, whether it is shorter than net/http's buffer, as long, or longer, and also when it is held back
// in part.
func TestAnswersOfAllSizes(t *testing.T) {
	const localhost = "127.0.0.1"
	n := newNode(t, nil)
	n.serve(localhost, "web", time.Now())
	l, err := net.Listen("tcp", localhost+":0")
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, l)
	ask := func(size int) (head, body string) {
		session := testSession(testGrant("web"), time.Now(), 0)
		session.Body = bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		n.sessions.put(testGrant("web"), minted{session: session})
		head, body, _ = strings.Cut(exchangeTCP(t, l.Addr().String(), localhost, get(sc+"/web")), "\r\n\r\n")
		if want := string(session.Body); body != want || !strings.Contains(head, "Content-Length: "+strconv.Itoa(size)) {
			t.Errorf("of %d bytes, %d arrived with the head %q", size, len(body), head)
		}
		return head, body
	}
	head, _ := ask(1000)
	full := len(buffer{}) - len(head+"\r\n\r\n")
	for _, size := range []int{0, 1, full - 2, full - 1, full, full + 1, full + 2, 2*len(buffer{}) - 1, 2 * len(buffer{}), 20_000} {
		ask(size)
	}
	// Without a body, none is waited for.
	n.sessions.put(testGrant("web"), minted{session: testSession(testGrant("web"), time.Now(), 6000)})
	response := exchangeTCP(t, l.Addr().String(), localhost, request("HEAD", sc+"/web"))
	if !strings.HasSuffix(response, "\r\n\r\n") {
		t.Errorf("HEAD: %q", response)
	}
}

// What a connection holds back goes out with what comes next, and with nothing else.
func TestWriteHoldsBack(t *testing.T) {
	head := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
	full := append(bytes.Clone(head), bytes.Repeat([]byte("x"), len(buffer{})-len(head))...)
	for name, tt := range map[string]struct {
		length int      // of the body
		writes []string // of net/http
		want   []string // on the wire after each
	}{
		"goes_on":       {5000, []string{string(full), "rest"}, []string{"", string(full) + "rest"}},
		"just_fits":     {len(full) - len(head), []string{string(full)}, []string{string(full)}},
		"short":         {5000, []string{"HTTP/1.1 100 Continue\r\n\r\n"}, []string{"HTTP/1.1 100 Continue\r\n\r\n"}},
		"no_head":       {5000, []string{strings.Repeat("x", len(full))}, []string{strings.Repeat("x", len(full))}},
		"another_large": {9000, []string{string(full), string(full)}, []string{"", string(full) + string(full)}},
	} {
		t.Run(name, func(t *testing.T) {
			wire := &script{}
			c := &connection{hostConn: hostConn{Conn: wire}}
			c.exchange.Server = newNode(t, nil).Server
			c.exchange.length = tt.length
			for i, text := range tt.writes {
				if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
					t.Errorf("write %d: %d, %v; want %d", i, n, err, len(text))
				}
				if got := wire.out.String(); got != tt.want[i] {
					t.Errorf("after write %d: %d bytes, want %d", i, len(got), len(tt.want[i]))
				}
			}
		})
	}
}
