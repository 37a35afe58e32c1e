package sts

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Rules names the rows of the error table.
func Rules() []string {
	var rows []string
	for _, r := range rules {
		rows = append(rows, r.name())
	}
	return rows
}

// Rule names the row that decides an answer; empty: none.
func Rule(action, code, message string) string {
	for _, r := range rules {
		if r.code == code && (r.action == "" || r.action == action) && strings.Contains(strings.ToLower(message), r.contains) {
			return r.name()
		}
	}
	return ""
}

func (r rule) name() string { return fmt.Sprintf("%s of %q with %q", r.code, r.action, r.contains) }

// ProxyExcept is the rule of NewHTTPClient with a proxy of the test's own: that of the environment is read only once.
func ProxyExcept(proxy func(*http.Request) (*url.URL, error), direct ...netip.Addr) func(*http.Request) (*url.URL, error) {
	return proxyExcept(proxy, direct)
}
