package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

const podIP = "10.1.2.3"

// inBubble runs f with a fake clock and a node that knows nobody, and checks that nothing is left running.
func inBubble(t *testing.T, edit func(*Config), f func(t *testing.T, n *node, l *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, edit)
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Serve(ctx, l) }()
		f(t, n, l)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// after does f after d.
func after(d time.Duration, f func()) {
	go func() {
		time.Sleep(d)
		f()
	}()
}

func TestParking(t *testing.T) {
	var (
		source = netip.MustParseAddr(podIP)
		w, g   = testPod("web"), testGrant("web")
		ms     = time.Millisecond
	)
	const never = time.Hour
	tests := []struct {
		name                        string
		identity, decision, session time.Duration // when each becomes known
		denial                      *role.Denial
		mintError                   error
		path                        string
		code                        int
		took                        time.Duration
	}{
		{name: "warm", path: sc + "/web", code: 200, took: 0},
		{name: "late_identity", identity: 500 * ms, path: sc + "/web", code: 200, took: 500 * ms},
		{name: "late_decision", decision: 500 * ms, path: sc + "/web", code: 200, took: 500 * ms},
		{name: "late_session", session: 500 * ms, path: sc + "/web", code: 200, took: 500 * ms},
		{name: "each_late", identity: 200 * ms, decision: 500 * ms, session: 800 * ms,
			path: sc + "/web", code: 200, took: 800 * ms},
		{name: "last_moment", session: 899 * ms, path: sc + "/web", code: 200, took: 899 * ms},
		{name: "one_budget", identity: 600 * ms, decision: 800 * ms, session: 1000 * ms,
			path: sc + "/web", code: 503, took: 900 * ms},
		{name: "no_identity", identity: never, path: sc + "/web", code: 503, took: 900 * ms},
		{name: "no_decision", decision: never, path: sc + "/web", code: 503, took: 900 * ms},
		{name: "no_session", session: never, path: sc + "/web", code: 503, took: 900 * ms},
		{name: "late_denial", decision: 400 * ms, denial: &role.Denial{Reason: role.NoRole},
			path: sc + "/", code: 404, took: 400 * ms},
		{name: "late_refusal_of_aws", session: 700 * ms, mintError: &sts.Error{Kind: sts.Denied},
			path: sc + "/web", code: 404, took: 700 * ms},
		{name: "mint_fails_for_now", session: 300 * ms, mintError: &sts.Error{Kind: sts.Throttled},
			path: sc + "/web", code: 503, took: 300 * ms},
		{name: "unspecific_failure", session: 300 * ms, mintError: errors.New("broken"),
			path: sc + "/web", code: 503, took: 300 * ms},
		{name: "listing_needs_no_session", session: never, path: sc + "/", code: 200, took: 0},
		{name: "wrong_role_needs_no_session", session: never, path: sc + "/db", code: 404, took: 0},
		{name: "region_needs_no_identity", identity: never,
			path: regionPath, code: 200, took: 0},
		{name: "unknown_path_needs_no_identity", identity: never, path: "/latest/user-data", code: 404, took: 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, n *node, l *pipes) {
				d := decision{grant: g, denial: tt.denial}
				m := minted{session: testSession(g, time.Now(), 0), err: tt.mintError}
				after(tt.identity, func() { n.identity.put(source, w) })
				after(tt.decision, func() { n.roles.put(w, d) })
				after(tt.session, func() { n.sessions.put(g, m) })
				synctest.Wait()

				begin := time.Now()
				code := status(t, l.ask(podIP, get(tt.path)))
				if took := time.Since(begin); code != tt.code || took != tt.took {
					t.Errorf("%d after %v, want %d after %v", code, took, tt.code, tt.took)
				}
				time.Sleep(never) // what was to come later, comes
			})
		})
	}
}

// The PUT takes no time whatever is unknown, and its token is good as soon as the rest is there.
func TestTokenNeverParks(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *node, l *pipes) {
		begin := time.Now()
		response := parse(t, l.ask(podIP, put("21600")))
		if took := time.Since(begin); !strings.Contains(response.status, "200") || took != 0 {
			t.Fatalf("PUT: %s after %v, want 200 at once", response.status, took)
		}
		after(500*time.Millisecond, func() { n.serve(podIP, "web", time.Now()) })
		if got := status(t, l.ask(podIP, get(sc+"/web", withToken(response.body)))); got != 200 {
			t.Errorf("GET with that token: %d, want 200", got)
		}

		// A bad token is refused before anything is waited for.
		begin = time.Now()
		if got := status(t, l.ask("10.9.9.9", get(sc+"/web", withToken(response.body)))); got != 401 {
			t.Errorf("GET from another address: %d, want 401", got)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the refusal took %v", took)
		}
	})
}

// A client that gives up ends its request at once.
func TestClientLeaves(t *testing.T) {
	observed := make(chan time.Duration, 1)
	observe := func(c *Config) {
		c.Observe = func(_ Route, _ int, took time.Duration) { observed <- took }
	}
	inBubble(t, observe, func(t *testing.T, n *node, l *pipes) {
		c := l.dial(podIP)
		go io.WriteString(c, get(sc))
		time.Sleep(300 * time.Millisecond)
		c.Close()
		if took := <-observed; took != 300*time.Millisecond {
			t.Errorf("the request of a client that left after 300 ms ended after %v", took)
		}
	})
}

// Serve lets a parked request finish, and takes no new ones meanwhile.
func TestServeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Serve(ctx, l) }()

		after(500*time.Millisecond, func() { n.serve(podIP, "web", time.Now()) })
		after(100*time.Millisecond, cancel)
		if got := status(t, l.ask(podIP, get(sc+"/web"))); got != 200 {
			t.Errorf("request in flight at shutdown: %d, want 200", got)
		}
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		select {
		case <-l.closed:
		default:
			t.Error("the listener is still open")
		}
	})
}

// Serve does not wait longer than the grace for a client that sends nothing.
func TestServeCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(c *Config) { c.Grace = 1500 * time.Millisecond })
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Serve(ctx, l) }()
		c := l.dial(podIP)
		defer c.Close()
		io.WriteString(c, "GET /latest/")
		synctest.Wait()

		cancel()
		begin := time.Now()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(begin); took != 1500*time.Millisecond {
			t.Errorf("Serve took %v to end, want the grace of 1.5s", took)
		}
	})
}

// That goes for a request that parks, too, also one that net/http does not watch because of the body it announced.
func TestServeCutsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(c *Config) { c.Grace = 100 * time.Millisecond })
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Serve(ctx, l) }()
		c := l.dial(podIP)
		defer c.Close()
		io.WriteString(c, get(sc, "Content-Length: 5"))
		synctest.Wait()

		cancel()
		begin := time.Now()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(begin); took != 100*time.Millisecond {
			t.Errorf("Serve took %v to end, want the grace of 100ms", took)
		}
	})
}

// Serve reports a listener that fails, after it has cleaned up.
func TestServeFails(t *testing.T) {
	n := newNode(t, nil)
	l := newPipes()
	l.Close()
	if err := n.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "serve metadata on") {
		t.Errorf("Serve with a broken listener: %v", err)
	}
}

// Neither a slow head nor a body that does not come holds a connection for longer than it takes an honest client.
func TestSlowClients(t *testing.T) {
	const head, body = 2 * time.Second, 5*time.Second + DefaultWait
	for name, tt := range map[string]struct {
		sent string
		took time.Duration
	}{
		"nothing":      {"", head},
		"half_a_head":  {"GET /latest/meta-data/ HTTP/1.1\r\nHo", head},
		"held_newline": {"GET /latest/meta-data/ HTTP/1.1\r\n\r", head},
		"half_a_body":  {request("POST", "/latest/", "Content-Length: 100000") + "x", body},
		"endless_body": {put("60", "Transfer-Encoding: chunked") + "5\r\nhello\r\n", body},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, n *node, l *pipes) {
				c := l.dial(podIP)
				defer c.Close()
				begin := time.Now()
				go io.WriteString(c, tt.sent)
				io.Copy(io.Discard, c)
				if took := time.Since(begin); took != tt.took {
					t.Errorf("the connection was open for %v, want %v", took, tt.took)
				}
			})
		})
	}
}

// Neither does a client that does not read the answer.
func TestClientDoesNotRead(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *node, l *pipes) {
		c := l.dial(podIP)
		defer c.Close()
		begin := time.Now()
		io.WriteString(c, get("/latest/"))
		// One byte is read ahead; the next one is not, so this ends with the connection.
		if _, err := io.WriteString(c, "xx"); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write to a connection that is not read from: %v", err)
		}
		if took, want := time.Since(begin), 5*time.Second+DefaultWait; took != want {
			t.Errorf("the connection was open for %v, want %v", took, want)
		}
	})
}

// halves notes how a connection is closed, with the time since it was made.
type halves struct {
	net.Conn
	mu     sync.Mutex
	began  time.Time
	events []string
}

func (h *halves) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, what+" after "+time.Since(h.began).String())
}

func (h *halves) RemoteAddr() net.Addr { return peer(podIP) }

func (h *halves) CloseWrite() error {
	h.note("half closed")
	return nil
}

func (h *halves) Close() error {
	h.note("closed")
	return h.Conn.Close()
}

// An answer to a request whose body was not read is given time to arrive: what closes with something unread is reset, and
// takes an answer with it that is under way.
func TestAnswerArrivesBesideUnreadBody(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, n *node, l *pipes) {
		far, near := net.Pipe()
		defer far.Close()
		h := &halves{Conn: near, began: time.Now()}
		l.accept <- h
		go io.WriteString(far, request("POST", sc, "Content-Length: 1000000")+"x")
		response, _ := io.ReadAll(far)
		if got := status(t, string(response)); got != 405 {
			t.Errorf("status %d, want 405", got)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"half closed after 0s", "closed after 500ms"}, h.events); diff != "" {
			t.Errorf("ends (-want +got):\n%s", diff)
		}
	})
}

// A pod that retries must not fill the log, and no log line may hold a secret or a token.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	edit := func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	inBubble(t, edit, func(t *testing.T, n *node, l *pipes) {
		n.serve(podIP, "web", time.Now())
		for range 100 {
			l.ask(podIP, get(sc+"/web"))         // served
			l.ask(podIP, get(sc+"/db"))          // refused
			l.ask(podIP, get("/latest/nothing")) // refused
		}
		if log.Len() > 0 {
			t.Errorf("a line per ordinary request:\n%s", log.String())
		}
		for range 100 {
			l.ask("10.9.9.9", get(sc))
		}
		if lines := strings.Count(log.String(), "\n"); lines < 1 || lines > 25 {
			t.Errorf("%d lines for 100 times 503 in 90 s, want some, but few", lines)
		}
	})

	log.Reset()
	edit = func(c *Config) {
		c.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	inBubble(t, edit, func(t *testing.T, n *node, l *pipes) {
		n.serve(podIP, "web", time.Now())
		token := parse(t, l.ask(podIP, put("60"))).body
		l.ask(podIP, get(sc+"/web", withToken(token)))
		l.ask(podIP, get(sc+"/db", withToken(token)))
		l.ask("10.9.9.9", get(sc+"/web", withToken(token)))
		session := testSession(testGrant("web"), time.Now(), 0)
		session.Grant.ExternalID = "other"
		n.sessions.put(testGrant("web"), minted{session: session})
		l.ask(podIP, get(sc+"/web", withToken(token)))
		if lines := strings.Count(log.String(), "\n"); lines != 3 {
			t.Errorf("%d lines for three refusals:\n%s", lines, log.String())
		}
		for _, secret := range []string{testSecret, testSessionToken, token, string(testKey)} {
			if strings.Contains(log.String(), secret) {
				t.Errorf("the log has a secret in it:\n%s", log.String())
			}
		}
	})
}

// The budget is a context like any other, with and without its timer.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancel(t.Context())
		b := &budget{Context: parent, deadline: time.Now().Add(time.Second)}
		if err := b.Err(); err != nil || b.timed != nil {
			t.Errorf("before the deadline: %v, timer %v; want neither", err, b.timed)
		}
		time.Sleep(time.Second)
		if err := b.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the deadline: %v", err)
		}
		cancel()
		if err := b.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error has changed to %v", err)
		}
		<-b.Done()
		b.release()

		parent, cancel = context.WithCancel(t.Context())
		b = &budget{Context: parent, deadline: time.Now().Add(time.Second)}
		child, stop := context.WithCancel(b)
		defer stop()
		cancel()
		if err := b.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("after the request's end: %v", err)
		}
		<-child.Done()
		b.release()
	})
}
