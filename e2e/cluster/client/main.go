// Client is what the cluster's pods run.
//
//	client pause            waits: the container that holds a pod's namespaces
//	client first            asks for credentials as its first instruction, says what became of it, and ends
//	client serve            asks for credentials whenever it is asked to, on port 8080
//	client serve INTERVAL   the same, and goes on asking every interval
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/podrole/podrole/e2e/cluster/ask"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "first" {
		report(ask.Credentials(context.Background()))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch {
	case len(os.Args) == 2 && os.Args[1] == "pause":
		<-ctx.Done()
	case len(os.Args) >= 2 && len(os.Args) <= 3 && os.Args[1] == "serve":
		var interval time.Duration
		if len(os.Args) == 3 {
			var err error
			if interval, err = time.ParseDuration(os.Args[2]); err != nil {
				fail(err)
			}
		}
		if err := serve(ctx, interval); err != nil {
			fail(err)
		}
	default:
		fail(fmt.Errorf("arguments %q: want pause, first or serve", os.Args[1:]))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "client:", err)
	os.Exit(1)
}

// report leaves the outcome where the kubelet takes it from, into the pod's status
// (https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/).
func report(o ask.Outcome) {
	text, err := json.Marshal(o)
	if err != nil {
		fail(err)
	}
	if err := os.WriteFile("/dev/termination-log", text, 0o600); err != nil {
		fail(err)
	}
}

func serve(ctx context.Context, interval time.Duration) error {
	l := &load{total: ask.Load{Began: time.Now(), Every: interval}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /credentials", func(w http.ResponseWriter, r *http.Request) { answer(w, ask.Credentials(r.Context())) })
	mux.HandleFunc("GET /load", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.get()) })
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: time.Minute}
	var work sync.WaitGroup
	defer work.Wait()
	if interval > 0 {
		work.Go(func() { l.run(ctx, interval) })
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // a caller that left is no concern of ours
}

// load asks again and again.
type load struct {
	mu    sync.Mutex // guards total
	total ask.Load
}

func (l *load) get() ask.Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := l.total
	total.Failures, total.Final, total.Keys = slices.Clone(total.Failures), slices.Clone(total.Final), slices.Clone(total.Keys)
	return total
}

// run asks every interval, without waiting for the one before, until ctx ends.
func (l *load) run(ctx context.Context, interval time.Duration) {
	var asking sync.WaitGroup
	defer asking.Wait()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			asking.Go(func() {
				if o := ask.Credentials(ctx); ctx.Err() == nil {
					l.add(o)
				}
			})
		}
	}
}

func (l *load) add(o ask.Outcome) {
	const most = 100
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &l.total
	t.Requests++
	t.Slowest = max(t.Slowest, o.Took)
	if o.Error != "" {
		t.Failed++
		if len(t.Failures) < most {
			t.Failures = append(t.Failures, o)
		}
		if o.Final() && len(t.Final) < most {
			t.Final = append(t.Final, o)
		}
	} else if !slices.Contains(t.Keys, o.AccessKeyID) {
		t.Keys = append(t.Keys, o.AccessKeyID)
	}
}
