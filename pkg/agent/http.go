package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

// handler serves metrics, and what probes ask. It is for operators and the kubelet. Whoever reaches the node's port can
// read it, pods included: nothing in it is secret.
func handler(metrics http.Handler, health *health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !health.alive() {
			http.Error(w, "not alive: --state-dir was deleted while in use, and only a restart helps", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := health.ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}

// serveHTTP serves handler on address until ctx ends. While the address is taken, as by the agent that this one is about to
// replace, it tries again: an agent without metrics is better than none. What an agent that is gone left in a socket's
// place is removed.
func serveHTTP(ctx context.Context, network, address string, handler http.Handler, logger *slog.Logger) {
	const retry = 2 * time.Second
	for said := false; ; said = true {
		if network == "unix" {
			removeSocket(address)
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if err == nil {
			serveUntil(ctx, l, handler, logger)
			return
		}
		if !said {
			logger.Warn("cannot serve metrics and probes yet", "address", address, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// removeSocket removes a socket, and nothing else that may be in its place: Listen says what is wrong then.
func removeSocket(path string) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		_ = os.Remove(path)
	}
}

func serveUntil(ctx context.Context, l net.Listener, handler http.Handler, logger *slog.Logger) {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		logger.Error("metrics and probes are no longer served", "error", err)
	}
}
