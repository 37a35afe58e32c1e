package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podrole/podrole/pkg/role"
)

// The functions of this file turn the text of a setting into its value. Their errors say what is wrong with the text,
// without repeating it and without saying what would be right: that is the table's business.

// into returns a parse function that stores what read makes of a text.
func into[T any](target *T, read func(string) (T, error)) func(string) error {
	return func(s string) error {
		v, err := read(s)
		if err == nil {
			*target = v
		}
		return err
	}
}

// optional lets an empty text stand for the zero value.
func optional[T any](read func(string) (T, error)) func(string) (T, error) {
	return func(s string) (T, error) {
		if s == "" {
			var zero T
			return zero, nil
		}
		return read(s)
	}
}

func text(s string) (string, error) { return s, nil }

func boolean(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("not a boolean")
}

func oneOf[T ~string](choices ...T) func(string) (T, error) {
	return func(s string) (T, error) {
		if i := slices.Index(choices, T(s)); i >= 0 {
			return choices[i], nil
		}
		return "", errors.New("not one of the choices")
	}
}

func duration(shortest, longest time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		switch {
		case err != nil:
			return 0, errors.New("not a duration, which is a number and a unit (ms, s, m, h)")
		case d < shortest:
			return 0, errors.New("too short")
		case d > longest:
			return 0, errors.New("too long")
		}
		return d, nil
	}
}

// linger is a duration of which nothing is said by 0, as Config.STS.Linger has it.
func linger(s string) (time.Duration, error) {
	d, err := duration(0, 24*time.Hour)(s)
	if err == nil && d == 0 {
		return -1, nil
	}
	return d, err
}

// seconds is a duration that an API takes as a whole number of seconds.
func seconds(shortest, longest time.Duration) func(string) (time.Duration, error) {
	read := duration(shortest, longest)
	return func(s string) (time.Duration, error) {
		d, err := read(s)
		if err == nil && d%time.Second != 0 {
			return 0, errors.New("not a whole number of seconds")
		}
		return d, err
	}
}

func rate(s string) (float64, error) {
	r, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(r) || math.IsInf(r, 0):
		return 0, errors.New("not a number")
	case r <= 0:
		return 0, errors.New("not greater than zero")
	}
	return r, nil
}

// requestRate is a rate, of which 0 is none.
func requestRate(s string) (float64, error) {
	if s == "0" {
		return 0, nil
	}
	return rate(s)
}

func level(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, errors.New("not a log level")
}

// nodeName is a DNS subdomain (https://kubernetes.io/docs/concepts/overview/working-with-objects/names/).
func nodeName(s string) (string, error) {
	if len(validation.IsDNS1123Subdomain(s)) > 0 {
		return "", errors.New("not a node name, which has lower-case letters, digits, '-' and '.' only")
	}
	return s, nil
}

func annotationKey(s string) (string, error) {
	if len(validation.IsQualifiedName(s)) > 0 {
		return "", errors.New("not an annotation key")
	}
	return s, nil
}

func taintKey(s string) (string, error) {
	if len(validation.IsQualifiedName(s)) > 0 {
		return "", errors.New("not the key of a taint")
	}
	return s, nil
}

// tagPattern is what the value of a session tag may hold
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_Tag.html).
var tagPattern = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{1,256}$`)

func tagValue(s string) (string, error) {
	if !tagPattern.MatchString(s) {
		return "", errors.New("not the value of a session tag")
	}
	return s, nil
}

// inPartition checks the second field of an ARN against the partitions that AWS has
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html; the isolated ones are aws-iso, aws-iso-b, …).
func inPartition(arn string) error {
	partition, _, _ := strings.Cut(strings.TrimPrefix(arn, "arn:"), ":")
	switch {
	case partition == "aws", partition == "aws-cn", partition == "aws-us-gov", partition == "aws-eusc",
		partition == "aws-iso", strings.HasPrefix(partition, "aws-iso-"):
		return nil
	}
	return fmt.Errorf("%s is no AWS partition", partition)
}

func baseRoleARN(s string) (string, error) {
	base, err := role.ParseBaseARN(s)
	if err != nil {
		return "", errors.New("not the beginning of role ARNs")
	}
	return base, inPartition(base)
}

func roleARN(s string) error {
	if role.ParseARN(s) != nil {
		return errors.New("not the ARN of an IAM role")
	}
	return inPartition(s)
}

var (
	// regionPattern covers eu-central-1, us-gov-west-1, us-isob-east-1, eusc-de-east-1.
	regionPattern = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]+$`)
	// zonePattern covers eu-central-1a, us-west-2-lax-1a and us-east-1-wl1-bos-wlz-1.
	zonePattern = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]+[a-z0-9-]*$`)
)

// oneRoleARN reads the ARN of a role.
func oneRoleARN(s string) (string, error) { return s, roleARN(s) }

func region(s string) (string, error) {
	if !regionPattern.MatchString(s) {
		return "", errors.New("not an AWS region")
	}
	return s, nil
}

// regions reads names of regions.
func regions(s string) ([]string, error) {
	parts, err := list(s, "region")
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if _, err := region(part); err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
	}
	return parts, nil
}

func zone(s string) (string, error) {
	if !zonePattern.MatchString(s) {
		return "", errors.New("not an availability zone")
	}
	return s, nil
}

func endpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("not an http or https URL")
	case u.Hostname() == "":
		return nil, errors.New("without a host")
	case u.User != nil:
		return nil, errors.New("holds credentials")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("has a query or a fragment")
	}
	return u, nil
}

func audiences(s string) ([]string, error) { return list(s, "audience") }

// interfaces reads names of network interfaces; none is a choice too.
func interfaces(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	return list(s, "interface")
}

// list reads what stands between commas, of which none may be empty or there twice.
func list(s, what string) ([]string, error) {
	var parts []string
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		switch {
		case part == "":
			return nil, errors.New("holds an empty " + what)
		case slices.Contains(parts, part):
			return nil, fmt.Errorf("names %q twice", part)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// folder reads an absolute path: where an agent is started from says nothing about the node.
func absolute(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("no path")
	case !filepath.IsAbs(s):
		return "", errors.New("not an absolute path")
	}
	return filepath.Clean(s), nil
}

func ipv4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, errors.New("not an IPv4 address")
	}
	return a, unicast(a)
}

func ipv6(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, errors.New("not an IPv6 address")
	}
	return a, unicast(a)
}

func unicast(a netip.Addr) error {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return errors.New("not an address that a pod can send to through its node")
	}
	return nil
}

// agentIPv4 refuses what is not link-local, because another host could be reached by it, and the link-local addresses
// with which AWS serves nodes and pods: the metadata service and its neighbours (DNS, time), container credentials (ECS
// and EKS Pod Identity), and the VPC CNI's addresses for pods in IPv6 clusters.
func agentIPv4(s string) (netip.Addr, error) {
	a, err := ipv4(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if !a.IsLinkLocalUnicast() {
		return netip.Addr{}, errors.New("not a link-local address")
	}
	return a, notAWS(a, "169.254.169.0/24", "169.254.170.0/24", "169.254.172.0/22")
}

// agentIPv6 is agentIPv4's twin. A unique local address it is, not a link-local one, because those need a zone.
func agentIPv6(s string) (netip.Addr, error) {
	a, err := ipv6(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if !a.IsPrivate() {
		return netip.Addr{}, errors.New("not a unique local address")
	}
	return a, notAWS(a, "fd00:ec2::/32", "fd00::ac:0/118")
}

func notAWS(a netip.Addr, taken ...string) error {
	for _, p := range taken {
		if netip.MustParsePrefix(p).Contains(a) {
			return fmt.Errorf("in %s, which AWS uses on its nodes", p)
		}
	}
	return nil
}

func listenAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", errors.New("not an address with a port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("not a port between 1 and 65535")
	}
	if host == "" {
		return s, nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return "", errors.New("not an IP address before the port")
	}
	return s, nil
}
