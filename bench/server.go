package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// serverMain turns the process into the bare server if bareServer made it. The body comes on standard input.
func serverMain() {
	if len(os.Args) != 3 || os.Args[1] != serverArgument {
		return
	}
	err := serveBare(os.Args[2])
	fmt.Fprintln(os.Stderr, "bare server:", err)
	os.Exit(1)
}

func serveBare(host string) error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	length := strconv.Itoa(len(body))
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", "text/plain")
			h.Set("Content-Length", length)
			h.Set("Connection", "close")
			_, _ = w.Write(body)
		}),
	}
	return server.Serve(l)
}
