package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"time"
)

// serverMain turns the process into the bare server if bareServer made it. The answer comes on standard input.
func serverMain() {
	if len(os.Args) != 3 || os.Args[1] != serverArgument {
		return
	}
	err := serveBare(os.Args[2])
	fmt.Fprintln(os.Stderr, "bare server:", err)
	os.Exit(1)
}

func serveBare(host string) error {
	var a answer
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			maps.Copy(w.Header(), a.Header)
			_, _ = w.Write(a.Body)
		}),
	}
	return server.Serve(l)
}
