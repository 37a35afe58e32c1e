package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"
)

// service is a node's metadata service in memory.
type service struct {
	mu      sync.Mutex
	has     map[string]string // by path
	latency time.Duration
	broken  bool
	failing string         // the path that is broken, at least
	hanging []string       // the paths that get no answer
	asked   map[string]int // how often for each path
	most    int            // requests at the same time
	now     int
}

func newService(has map[string]string) *service { return &service{has: has, asked: map[string]int{}} }

func (s *service) get(ctx context.Context, path string) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // no request is sent
	}
	s.mu.Lock()
	s.asked[path]++
	s.now++
	s.most = max(s.most, s.now)
	latency := s.latency
	if slices.Contains(s.hanging, path) {
		latency = time.Hour
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	if latency > 0 {
		select {
		case <-time.After(latency):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	body, ok := s.has[strings.TrimSuffix(path, "/")]
	switch {
	case s.broken || path == s.failing:
		return nil, status(http.StatusInternalServerError)
	case ok:
		return io.NopCloser(strings.NewReader(body)), nil
	default:
		return nil, status(http.StatusNotFound)
	}
}

func status(code int) error {
	response := &smithyhttp.Response{Response: &http.Response{StatusCode: code}}
	return &smithyhttp.ResponseError{Response: response, Err: fmt.Errorf("status %d", code)}
}

func (s *service) GetMetadata(
	ctx context.Context, in *imds.GetMetadataInput, _ ...func(*imds.Options),
) (*imds.GetMetadataOutput, error) {
	content, err := s.get(ctx, "meta-data/"+in.Path)
	return &imds.GetMetadataOutput{Content: content}, err
}

func (s *service) GetDynamicData(
	ctx context.Context, in *imds.GetDynamicDataInput, _ ...func(*imds.Options),
) (*imds.GetDynamicDataOutput, error) {
	content, err := s.get(ctx, "dynamic/"+in.Path)
	return &imds.GetDynamicDataOutput{Content: content}, err
}

func (s *service) set(edit func(*service)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(s)
}

func (s *service) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

const (
	macs    = "meta-data/network/interfaces/macs"
	mac     = macs + "/0a:1b:2c:3d:4e:5f"
	notices = "meta-data/spot/instance-action"
)

// instanceData is what an instance has, the secrets among it.
func instanceData() map[string]string {
	return map[string]string{
		"meta-data/placement":                             "availability-zone\nregion\npartition-number",
		"meta-data/placement/region":                      "eu-west-1",
		"meta-data/placement/availability-zone":           "eu-west-1b",
		"meta-data/placement/partition-number":            "3",
		"meta-data/instance-type":                         "m5.large",
		"meta-data/network":                               "interfaces/\nsecrets",
		"meta-data/network/secrets":                       "SECRET",
		"meta-data/network/a?b":                           "SECRET",
		"meta-data/network/a%2fb":                         "SECRET",
		"dynamic/fws":                                     "instance-monitoring",
		"meta-data/network/interfaces":                    "macs/\nother/",
		macs:                                              "0a:1b:2c:3d:4e:5f/",
		mac:                                               "mac\nvpc-id\nlocal-ipv4s",
		mac + "/mac":                                      "0a:1b:2c:3d:4e:5f",
		mac + "/vpc-id":                                   "vpc-1",
		notices:                                           "none",
		"meta-data/public-ipv4":                           "198.51.100.1",
		"meta-data/iam/security-credentials/node":         "SECRET",
		"meta-data/identity-credentials/ec2/info":         "SECRET",
		"dynamic/instance-identity/pkcs7":                 "SECRET",
		"dynamic/fws/instance-monitoring":                 "disabled",
		"meta-data/tags/instance/password":                "SECRET",
		"meta-data/managed-ssh-keys/active-keys/ec2-user": "SECRET",
		"meta-data/public-keys/0/openssh-key":             "SECRET",
		"meta-data/iam/security-credentials/../../public-ipv4": "SECRET",
	}
}

func patterns(t testing.TB, list string) []Pattern {
	t.Helper()
	p, err := ParsePatterns(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// running calls f in a bubble with a Store of s that runs and has fetched what it fetches by itself.
func running(t *testing.T, s *service, allow string, f func(t *testing.T, store *Store)) {
	synctest.Test(t, func(t *testing.T) {
		store := NewStore(Config{Client: s, Policy: Policy{InstanceFacts: true}, Allow: patterns(t, allow)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.Run(ctx) }()
		synctest.Wait()
		f(t, store)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

var someone = netip.MustParseAddr("10.0.0.1")

// text reads a path, and returns the body, nothing for what is not there, or the error.
func text(ctx context.Context, s *Store, path string, allowed ...Pattern) string {
	body, found, err := s.Read(ctx, Request{Path: path, Source: someone, Allowed: allowed})
	switch {
	case err != nil:
		return "error: " + err.Error()
	case !found:
		return "nothing"
	default:
		return string(body)
	}
}

func TestStoreRead(t *testing.T) {
	const nothing = "nothing"
	tests := []struct{ name, allow, allowed, path, want string }{
		{name: "for_all", path: "meta-data/placement/region", want: "eu-west-1"},
		{name: "not_allowed", path: mac + "/vpc-id", want: nothing},
		{name: "allowed_to_all", allow: "network/interfaces/macs/**", path: mac + "/vpc-id", want: "vpc-1"},
		{name: "allowed_to_one", allowed: "network/interfaces/macs/**", path: mac + "/vpc-id", want: "vpc-1"},
		{name: "one_segment", allowed: "network/interfaces/macs/*/vpc-id", path: mac + "/vpc-id", want: "vpc-1"},
		{name: "another_segment", allowed: "network/interfaces/macs/*/vpc-id", path: mac + "/mac", want: nothing},
		{name: "absent", allowed: "network/interfaces/macs/**", path: mac + "/nothing", want: nothing},
		{name: "dynamic", allowed: "dynamic/fws/*", path: "dynamic/fws/instance-monitoring", want: "disabled"},
		{name: "tag", allow: "tags/instance/*", path: "meta-data/tags/instance/password", want: "SECRET"},

		{name: "listing", allowed: "network/interfaces/macs/**", path: mac, want: "mac\nvpc-id\nlocal-ipv4s"},
		{name: "listing_of_some", allowed: "network/interfaces/macs/*/vpc-id network/interfaces/macs/*/mac", path: mac, want: "mac\nvpc-id"},
		{name: "listing_on_the_way", allowed: "network/interfaces/macs/**", path: "meta-data/network", want: "interfaces/"},
		{name: "listing_above", allowed: "network/interfaces/macs/**", path: macs, want: "0a:1b:2c:3d:4e:5f/"},
		{name: "listing_of_nothing", allowed: "network/interfaces/macs/0f:ff/mac", path: macs, want: nothing},
		{name: "listing_that_is_absent", allowed: "network/interfaces/vifs/**", path: "meta-data/network/interfaces/vifs", want: nothing},
		{name: "listing_for_all", allow: "network/interfaces/macs/** public-ipv4 spot/*", path: "meta-data",
			want: "iam/\ninstance-type\nnetwork/\nplacement/\npublic-ipv4\nservices/"},
		{name: "listing_for_all_below", allow: "network/interfaces/macs/**", path: "meta-data/network", want: "interfaces/"},
		{name: "listing_for_all_at_pattern", allow: "network/interfaces/macs/**", path: macs, want: "0a:1b:2c:3d:4e:5f/"},
		{name: "listing_for_all_with_pattern", allow: "placement/*", path: "meta-data/placement", want: "availability-zone\nregion"},
		{name: "leaf_by_pattern_beside_all", allow: "placement/*", path: "meta-data/placement/partition-number", want: "3"},

		{name: "listing_from_the_top", allowed: "network/interfaces/macs/** public-ipv4 spot/* vifs/**", path: "meta-data",
			want: "iam/\ninstance-type\nnetwork/\nplacement/\npublic-ipv4\nservices/"},
		{name: "listing_from_the_top_of_the_other_tree", allowed: "dynamic/fws/*", path: "dynamic", want: "fws/\ninstance-identity/"},
		{name: "listing_with_what_is_for_one", allowed: "placement/*", path: "meta-data/placement", want: "availability-zone\npartition-number\nregion"},
		{name: "listing_with_one_name", allowed: "placement/partition-number placement/nothing", path: "meta-data/placement",
			want: "availability-zone\npartition-number\nregion"},
		{name: "listing_with_what_is_for_all", allow: "network/interfaces/macs/**", allowed: "network/secrets network/interfaces/other/*", path: "meta-data/network",
			want: "interfaces/\nsecrets"},
		{name: "listing_at_pattern", allowed: "placement", path: "meta-data/placement", want: "availability-zone\nregion"},
		{name: "listing_of_what_is_listed_as_listing", allowed: "placement", path: "meta-data", want: "iam/\ninstance-type\nplacement/\nservices/"},
		{name: "listing_of_what_is_listed_as_listing_for_all", allow: "placement", path: "meta-data", want: "iam/\ninstance-type\nplacement/\nservices/"},
		{name: "listing_of_what_is_listed_as_leaf", allowed: "instance-type/**", path: "meta-data", want: "iam/\ninstance-type\nplacement/\nservices/"},
		{name: "listing_of_what_is_listed_as_leaf_for_all", allow: "instance-type/**", path: "meta-data",
			want: "iam/\ninstance-type\nplacement/\nservices/"},
		{name: "listing_of_one_name_once", allowed: "network,network/**", path: "meta-data", want: "iam/\ninstance-type\nnetwork/\nplacement/\nservices/"},
		{name: "listing_of_one_name_once_for_all", allow: "network,network/**", path: "meta-data",
			want: "iam/\ninstance-type\nnetwork/\nplacement/\nservices/"},
		{name: "listing_of_one_name_once_in_between", allow: "network/interfaces/macs/**", allowed: "network/interfaces,network/interfaces/**,network/secrets/*",
			path: "meta-data/network", want: "interfaces/\nsecrets"},
		{name: "listing_in_the_form_of_the_service", allow: "network/secrets", allowed: "network/interfaces", path: "meta-data/network", want: "interfaces/\nsecrets"},
		{name: "listing_of_versions", allowed: "network/**", path: "", want: "dynamic\nmeta-data"},
		{name: "listing_of_iam", allowed: "network/**", path: "meta-data/iam", want: "info\nsecurity-credentials/"},
		{name: "leaf_for_all", allowed: "placement/*", path: "meta-data/placement/region", want: "eu-west-1"},

		{name: "credentials", allowed: "network/**", path: "meta-data/iam/security-credentials/node", want: nothing},
		{name: "unsafe_path", allowed: "network/**", path: "meta-data/network/a?b", want: nothing},
		{name: "unsafe_path_for_all", allow: "network/**", path: "meta-data/network/a?b", want: nothing},
		{name: "escapes", allow: "network/**", path: "meta-data/network/a%2fb", want: nothing},
		{name: "user_data", allowed: "network/**", path: "user-data", want: nothing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(instanceData())
			running(t, s, tt.allow, func(t *testing.T, store *Store) {
				if got := text(t.Context(), store, tt.path, patterns(t, tt.allowed)...); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
			for path := range s.asked {
				allowed, leads := matchAny(strings.TrimSuffix(path, "/"), patterns(t, tt.allow), patterns(t, tt.allowed))
				wanted := (allowed || leads) && Allowable(strings.TrimSuffix(path, "/"))
				if !wanted && !slices.Contains(Policy{InstanceFacts: true}.leaves(), path) {
					t.Errorf("the service was asked for %s", path)
				}
			}
		})
	}
}

// Without the service, and until it answers, pods are told what is static.
func TestStoreUntilTheServiceAnswers(t *testing.T) {
	s := newService(instanceData())
	s.broken = true
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		store := NewStore(Config{Client: s, Static: Static{Region: "us-east-1", InstanceType: "t3.nano"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.Run(ctx) }()
		const region, kind = "meta-data/placement/region", "meta-data/instance-type"
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := text(ctx, store, region); got != "us-east-1" {
			t.Errorf("region %q while the service is broken", got)
		}
		if got := text(ctx, store, kind); got != "nothing" {
			t.Errorf("instance type %q, which no pod may know", got)
		}
		store.SetStatic(Static{Region: "us-east-2", Zone: "us-east-2a"})
		if got := text(ctx, store, region); got != "us-east-2" {
			t.Errorf("region %q after it was set anew", got)
		}
		if tries := s.count(region); tries < 4 || tries > 8 {
			t.Errorf("%d tries in a minute, want some, but fewer and fewer", tries)
		}
		if lines := strings.Count(log.String(), "\n"); lines != s.count(region) {
			t.Errorf("%d lines of log for %d tries:\n%s", lines, s.count(region), &log)
		}
		// What has been read once is not forgotten because a later try fails.
		s.set(func(s *service) { s.broken, s.failing = false, pathZone })
		time.Sleep(5 * time.Minute)
		if got := text(ctx, store, region); got != "eu-west-1" {
			t.Errorf("region %q when the service answers in part", got)
		}
		s.set(func(s *service) { s.broken = true })
		time.Sleep(10 * time.Minute)
		if got := text(ctx, store, region); got != "eu-west-1" {
			t.Errorf("region %q when the service does not answer any more", got)
		}
		s.set(func(s *service) { s.broken, s.failing = false, "" })
		time.Sleep(5 * time.Minute)
		if got := text(ctx, store, region); got != "eu-west-1" {
			t.Errorf("region %q when the service answers", got)
		}
		document := "{\n  \"availabilityZone\" : \"eu-west-1b\",\n  \"region\" : \"eu-west-1\",\n  \"version\" : \"2017-09-30\"\n}"
		if got := text(ctx, store, pathDocument); got != document {
			t.Errorf("document %q; the service has none, want one of what it says elsewhere", got)
		}
		if got := text(ctx, store, pathPartition); got != "aws" {
			t.Errorf("partition %q; the service has none, want that of the region", got)
		}
		store.SetStatic(Static{Region: "us-east-1"})
		if got := text(ctx, store, region); got != "eu-west-1" {
			t.Errorf("region %q: what is static has displaced what the service says", got)
		}
		asked := s.count(region)
		time.Sleep(24 * time.Hour)
		if got := s.count(region); got != asked {
			t.Errorf("asked %d times more for what does not change", got-asked)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	without := NewStore(Config{Static: Static{Region: "us-east-1"}, Allow: patterns(t, "spot/*")})
	if got := text(t.Context(), without, notices); got != "nothing" {
		t.Errorf("%q where there is no service, want nothing at once", got)
	}
	if got := text(t.Context(), without, "meta-data", patterns(t, "network/**")...); got != "iam/\nplacement/\nservices/" {
		t.Errorf("listing %q where there is no service, want what is for all at once", got)
	}
	if without.Varies("meta-data") {
		t.Error("without a service, some pods may read more than others")
	}
}

// untold is how text starts for what the service has not told.
const untold = "error: read "

// What the service has not answered is not known, rather than not there; what it has answered, it need not be asked again.
func TestUnknownIsNotNone(t *testing.T) {
	s := newService(instanceData())
	s.failing = pathZone
	synctest.Test(t, func(t *testing.T) {
		store := NewStore(Config{Client: s, Policy: Policy{InstanceFacts: true}, Allow: patterns(t, "network/interfaces/macs/**")})
		look := func(when string, want map[string]string) {
			t.Helper()
			for path, want := range want {
				if want == untold {
					want += path + ": " + errUntold.Error()
				}
				if got := text(t.Context(), store, path); got != want {
					t.Errorf("%s, %s: %q, want %q", when, path, got, want)
				}
			}
		}
		const below = "meta-data/placement/availability-zone/below"
		look("before it runs", map[string]string{
			pathRegion: untold, pathZone: untold, pathDocument: untold, "meta-data/placement": untold, "meta-data/services": untold,
			"dynamic/instance-identity": untold, "meta-data/instance-id": untold,
			"": "dynamic\nmeta-data", "dynamic": "instance-identity/", "meta-data": "iam/", "meta-data/iam": "info\nsecurity-credentials/",
			"meta-data/whatever": "nothing", "meta-data/place": "nothing", below: "nothing", "user-data": "nothing",
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.Run(ctx) }()
		<-store.Loaded()
		look("when one leaf failed", map[string]string{
			pathRegion: "eu-west-1", pathZone: untold, "meta-data/placement": "region", "meta-data/instance-id": "nothing",
			"meta-data": "iam/\ninstance-type\nnetwork/\nplacement/\nservices/", "meta-data/network": "interfaces/",
		})
		s.set(func(s *service) { s.failing = "" })
		time.Sleep(time.Second)
		synctest.Wait()
		look("when it was tried again", map[string]string{pathZone: "eu-west-1b", "meta-data/placement": "availability-zone\nregion"})
		for path, asked := range s.asked {
			if want := map[string]int{pathZone: 2}[path]; asked != max(1, want) {
				t.Errorf("asked %d times for %s", asked, path)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	without := NewStore(Config{Static: Static{Zone: "eu-west-1b"}})
	if got := text(t.Context(), without, pathRegion); got != "nothing" {
		t.Errorf("region %q where there is no service to say more", got)
	}
}

// Loaded waits for the first try, whatever comes of it, and for nothing where there is none.
func TestLoaded(t *testing.T) {
	tests := []struct {
		name string
		edit func(*service)
		took time.Duration
	}{
		{"answers", func(s *service) { s.latency = 100 * time.Millisecond }, time.Duration(len(Policy{}.leaves())) * 100 * time.Millisecond},
		{"broken", func(s *service) { s.broken = true }, 0},
		{"one_leaf_hangs", func(s *service) { s.hanging = []string{pathRegion} }, leafTimeout},
		{"all_hang", func(s *service) { s.latency = time.Hour }, loadTimeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newService(instanceData())
				tt.edit(s)
				store := NewStore(Config{Client: s})
				synctest.Wait()
				select {
				case <-store.Loaded():
					t.Error("loaded before it runs")
				default:
				}
				began := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- store.Run(ctx) }()
				<-store.Loaded()
				if took := time.Since(began); took != tt.took {
					t.Errorf("loaded after %s, want %s", took, tt.took)
				}
				if s.hanging != nil {
					if got := text(ctx, store, pathZone); got != "eu-west-1b" {
						t.Errorf("beside the leaf that hangs: %q", got)
					}
				}
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		})
	}
	select {
	case <-NewStore(Config{}).Loaded():
	default:
		t.Error("without a service, there is something to wait for")
	}
}

// A guess is told only where the service cannot say otherwise any more.
func TestGuessedRegion(t *testing.T) {
	guess := Static{Region: "us-east-1", RegionGuessed: true}
	confirmed := Static{Region: "us-east-1", RegionGuessed: true, Zone: "us-east-1c"}
	refuted := Static{Region: "us-east-1", RegionGuessed: true, Zone: "eu-west-1c"}
	sure := Static{Region: "us-east-1"}
	silent := func(s *service) { s.broken = true }
	tests := []struct {
		name         string
		static       Static
		service      func(*service)
		region, zone string
	}{
		{"guess_without_service", guess, nil, "us-east-1", "nothing"},
		{"guess_and_silence", guess, silent, untold, untold},
		{"guess_and_silence_about_it", guess, func(s *service) { s.failing = pathRegion }, untold, "eu-west-1b"},
		{"guess_and_silence_elsewhere", guess, func(s *service) { clear(s.has); s.failing = pathDocument }, untold, "nothing"},
		{"guess_and_answer", guess, func(*service) {}, "eu-west-1", "eu-west-1b"},
		{"guess_and_nothing", guess, func(s *service) { clear(s.has) }, "us-east-1", "nothing"},
		{"confirmed_and_silence", confirmed, silent, "us-east-1", "us-east-1c"},
		{"confirmed_and_answer", confirmed, func(*service) {}, "eu-west-1", "eu-west-1b"},
		{"refuted_and_silence", refuted, silent, untold, "eu-west-1c"},
		{"refuted_without_service", refuted, nil, "nothing", "eu-west-1c"},
		{"refuted_by_answer", guess, func(s *service) { delete(s.has, pathRegion) }, "nothing", "eu-west-1b"},
		{"sure_and_silence", sure, silent, "us-east-1", untold},
		{"sure_and_answer", sure, func(*service) {}, "eu-west-1", "eu-west-1b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Static: tt.static}
			if tt.service != nil {
				s := newService(instanceData())
				tt.service(s)
				cfg.Client = s
			}
			store := NewStore(cfg)
			if tt.service != nil {
				_ = store.load(t.Context()) // fails in some cases
			}
			region, zone := text(t.Context(), store, pathRegion), text(t.Context(), store, pathZone)
			if !strings.HasPrefix(region, tt.region) || !strings.HasPrefix(zone, tt.zone) {
				t.Errorf("region %q and zone %q, want %q and %q", region, zone, tt.region, tt.zone)
			}
			// All that says the region says the same.
			document := text(t.Context(), store, pathDocument)
			if said := strings.Contains(document, `"region" : "`+tt.region+`"`); said != (tt.region != untold && tt.region != "nothing") {
				t.Errorf("document %q beside region %q", document, region)
			}
			partition := text(t.Context(), store, pathPartition)
			if said := partition == "aws"; said != (tt.region != untold && tt.region != "nothing") {
				t.Errorf("partition %q beside region %q", partition, region)
			}
		})
	}
}

// Paths that hang keep none of those behind them from being asked for, and neither do slow ones.
func TestLoadGoesOn(t *testing.T) {
	leaves := Policy{InstanceFacts: true}.leaves()
	tests := []struct {
		name   string
		edit   func(*service)
		within time.Duration
	}{
		{"first_five_hang", func(s *service) { s.hanging = leaves[:5] }, 2*loadTimeout + time.Second},
		{"all_but_the_last_hang", func(s *service) { s.hanging = leaves[:len(leaves)-1] }, 4*loadTimeout + 7*time.Second},
		{"slow", func(s *service) { s.latency = 900 * time.Millisecond }, 3*loadTimeout + 3*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(instanceData())
			tt.edit(s)
			running(t, s, "", func(t *testing.T, store *Store) {
				time.Sleep(tt.within)
				synctest.Wait()
				for _, path := range leaves {
					hangs, asked := slices.Contains(s.hanging, path), s.count(path)
					if got := text(t.Context(), store, path); strings.HasPrefix(got, untold) != hangs {
						t.Errorf("%s hangs: %v; it is %q", path, hangs, got)
					}
					if !hangs && (asked == 0 || asked > 2) { // twice if it was cut short
						t.Errorf("asked %d times for %s", asked, path)
					}
				}
			})
		})
	}
}

// A round begins with what the one before it had no time for, or too little, and ends with what failed.
func TestLoadBeginsWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(instanceData())
		s.latency, s.failing = 900*time.Millisecond, pathRegion
		store := NewStore(Config{Client: s, Policy: Policy{InstanceFacts: true}, Allow: patterns(t, "spot/*,spot/**,placement/region")})
		want := append(Policy{InstanceFacts: true}.leaves()[5:], "meta-data/spot", pathRegion)
		if err := store.load(t.Context()); statusOf(err) != http.StatusInternalServerError {
			t.Errorf("%v, want the first failure", err)
		}
		if diff := cmp.Diff(want, store.untold); diff != "" {
			t.Errorf("left for the next round (-want +got):\n%s", diff)
		}
	})
}

// How old what pods read may be: what announces the end of the instance is fresh, or an error.
func TestAges(t *testing.T) {
	for path, want := range map[string][2]time.Duration{
		"meta-data/spot/instance-action":                {5 * time.Second, 5 * time.Second},
		"meta-data/spot/termination-time":               {5 * time.Second, 5 * time.Second},
		"meta-data/events":                              {5 * time.Second, 5 * time.Second},
		"meta-data/events/maintenance/scheduled":        {5 * time.Second, 5 * time.Second},
		"meta-data/events/recommendations/rebalance":    {5 * time.Second, 5 * time.Second},
		"meta-data/autoscaling":                         {5 * time.Second, 5 * time.Second},
		"meta-data/autoscaling/target-lifecycle-state":  {5 * time.Second, 5 * time.Second},
		"meta-data/spotless":                            {time.Minute, time.Hour},
		"meta-data/network/interfaces/macs":             {time.Minute, time.Hour},
		"meta-data/tags/instance/events":                {time.Minute, time.Hour},
		"dynamic/fws/instance-monitoring":               {time.Minute, time.Hour},
		"meta-data/placement/partition-number":          {time.Minute, time.Hour},
		"meta-data/eventsource/autoscaling/spot/events": {time.Minute, time.Hour},
	} {
		if fresh, stale := ages(path); fresh != want[0] || stale != want[1] {
			t.Errorf("%s may be %s old, or %s while the service does not answer; want %s and %s", path, fresh, stale, want[0], want[1])
		}
	}
}

// Who asks every two seconds for what announces the end of the instance waits once, and never sees anything older than
// five seconds.
func TestLifecycleIsFresh(t *testing.T) {
	const fresh = 5 * time.Second
	s := newService(instanceData())
	s.latency = 20 * time.Millisecond
	running(t, s, "", func(t *testing.T, store *Store) {
		time.Sleep(time.Second) // what it fetches by itself
		allowed := patterns(t, "spot/*")
		changed := time.Now()
		for n := range 300 {
			began := time.Now()
			got := text(t.Context(), store, notices, allowed...)
			if took := time.Since(began); n > 0 && took != 0 {
				t.Fatalf("request %d waited %s", n, took)
			}
			if old := time.Since(changed); got != fmt.Sprint("notice ", n/10) && old > fresh {
				t.Fatalf("request %d got %q, %s after it had changed", n, got, old)
			}
			if (n+1)%10 == 0 {
				s.set(func(s *service) { s.has[notices] = fmt.Sprint("notice ", (n+1)/10) })
				changed = time.Now()
			}
			if n == 0 {
				s.set(func(s *service) { s.has[notices] = "notice 0" })
			}
			time.Sleep(2 * time.Second)
		}
		if asked := s.count(notices); asked > 201 {
			t.Errorf("asked %d times in 600 s", asked)
		}
		// Who comes back after a while waits rather than get what is old; and so with an answer that was 404.
		time.Sleep(time.Minute)
		s.set(func(s *service) { delete(s.has, notices) })
		if got := text(t.Context(), store, notices, allowed...); got != "nothing" {
			t.Errorf("got %q, which is a minute old", got)
		}
		s.set(func(s *service) { s.has[notices] = "terminate" })
		time.Sleep(fresh + time.Millisecond)
		if got := text(t.Context(), store, notices, allowed...); got != "terminate" {
			t.Errorf("got %q, though there is a notice for longer than %s", got, fresh)
		}
	})
}

// While the service does not answer, what it said before is served for a while, but not about the instance's end.
func TestServiceFails(t *testing.T) {
	for name, fail := range map[string]func(*service){
		"broken": func(s *service) { s.broken = true },
		"hangs":  func(s *service) { s.latency = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(instanceData())
			running(t, s, "", func(t *testing.T, store *Store) {
				allowed := patterns(t, "spot/*,public-ipv4,network/**")
				ask := func(path string) string {
					ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
					defer cancel()
					return text(ctx, store, path, allowed...)
				}
				ask(notices)
				ask("meta-data/public-ipv4")
				s.set(fail)
				time.Sleep(30 * time.Minute)
				if got := ask("meta-data/public-ipv4"); got != "198.51.100.1" {
					t.Errorf("address %q, want what it was", got)
				}
				for _, path := range []string{notices, mac + "/vpc-id"} {
					if got := ask(path); !strings.HasPrefix(got, "error: fetch "+path) {
						t.Errorf("%s: %q, want an error", path, got)
					}
				}
				time.Sleep(time.Hour)
				if got := ask("meta-data/public-ipv4"); !strings.HasPrefix(got, "error: ") {
					t.Errorf("address %q after an hour and a half, want an error", got)
				}
				s.set(func(s *service) { s.broken, s.latency = false, 0 })
				time.Sleep(time.Minute)
				if got := ask(mac + "/vpc-id"); got != "vpc-1" {
					t.Errorf("%q when the service answers again", got)
				}
			})
		})
	}
}

// What the service does not tell of is missing in a listing that every pod may read, and nothing else is.
func TestListingWhileTheServiceFails(t *testing.T) {
	for name, fail := range map[string]func(s *service, path string){
		"broken": func(s *service, path string) { s.failing = path },
		"hangs":  func(s *service, path string) { s.hanging = []string{path} },
	} {
		for _, tt := range []struct{ failing, path, want string }{
			{"meta-data/network", "meta-data", "iam/\ninstance-type\nplacement/\npublic-ipv4\nservices/\nspot"},
			{"meta-data/public-ipv4", "meta-data", "iam/\ninstance-type\nnetwork/\nplacement/\nservices/\nspot"},
			{"meta-data/placement", "meta-data/placement", "availability-zone\nregion"},
		} {
			t.Run(name+"/"+strings.ReplaceAll(tt.failing, "/", "_"), func(t *testing.T) {
				s := newService(instanceData())
				s.has["meta-data/spot"] = "instance-action"
				fail(s, tt.failing)
				running(t, s, "", func(t *testing.T, store *Store) {
					ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
					defer cancel()
					allowed := patterns(t, "network/**,spot,public-ipv4,placement/*")
					if got := text(ctx, store, tt.path, allowed...); got != tt.want {
						t.Errorf("listing %q, want %q", got, tt.want)
					}
				})
			})
		}
	}
}

// Who asks again and again for what the service fails at neither takes the flights of others nor waits each time, and is
// answered soon after the service is.
func TestFailuresAreKept(t *testing.T) {
	const address = "meta-data/public-ipv4"
	tests := []struct {
		name    string
		path    string
		age     time.Duration // of the last answer when the service begins to fail; none: there was no answer
		failure string        // how the answer begins then
	}{
		{"unknown", address, 0, "error: fetch " + address},
		{"stale", address, 2 * time.Minute, "198.51.100.1"},
		{"lifecycle_unknown", notices, 0, "error: fetch " + notices},
		{"lifecycle", notices, lifecycleAge + time.Second, "error: fetch " + notices},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(instanceData())
			s.latency = 10 * time.Millisecond
			running(t, s, "", func(t *testing.T, store *Store) {
				time.Sleep(time.Second) // what it fetches by itself
				allowed := patterns(t, "public-ipv4,spot/*")
				if tt.age > 0 {
					text(t.Context(), store, tt.path, allowed...)
					time.Sleep(tt.age)
				}
				s.set(func(s *service) { s.failing = tt.path })
				before, waits := s.count(tt.path), 0
				const length = 10 * time.Second
				for began := time.Now(); time.Since(began) < length; time.Sleep(5 * time.Millisecond) {
					asked := time.Now()
					if got := text(t.Context(), store, tt.path, allowed...); !strings.HasPrefix(got, tt.failure) {
						t.Fatalf("%q, want %q", got, tt.failure)
					}
					if time.Since(asked) > 0 {
						waits++
					}
				}
				fetches := s.count(tt.path) - before
				if most := int(length / failureAge); fetches > most || fetches < most-1 || waits != fetches {
					t.Errorf("%d fetches and %d waits in %s, want at most %d", fetches, waits, length, most)
				}
				s.set(func(s *service) { s.failing, s.has[tt.path] = "", "new" })
				time.Sleep(failureAge)
				if got := text(t.Context(), store, tt.path, allowed...); got != "new" {
					t.Errorf("%q when the service answers again", got)
				}
			})
		})
	}
}

// What is not too old is served also while a fetch of what comes next has failed, and it is fetched again.
func TestFailureOfWhatIsFresh(t *testing.T) {
	s := newService(instanceData())
	running(t, s, "", func(t *testing.T, store *Store) {
		allowed := patterns(t, "spot/*")
		text(t.Context(), store, notices, allowed...)
		s.set(func(s *service) { s.failing = notices })
		time.Sleep(3 * time.Second)
		for range 2 {
			if got := text(t.Context(), store, notices, allowed...); got != "none" {
				t.Errorf("%q, want what is fresh", got)
			}
			synctest.Wait()
		}
		if asked := s.count(notices); asked != 2 {
			t.Errorf("asked %d times, want twice", asked)
		}
		s.set(func(s *service) { s.failing, s.has[notices] = "", "terminate" })
		time.Sleep(failureAge)
		text(t.Context(), store, notices, allowed...)
		synctest.Wait()
		if got := text(t.Context(), store, notices, allowed...); got != "terminate" {
			t.Errorf("%q after %s, want what the service says now", got, failureAge)
		}
	})
}

// All who wait for a fetch that fails are told so when it does, and have no other one made.
func TestOneFailureForAll(t *testing.T) {
	s := newService(instanceData())
	s.failing, s.latency = mac+"/vpc-id", 500*time.Millisecond
	running(t, s, "", func(t *testing.T, store *Store) {
		time.Sleep(time.Minute)
		allowed := patterns(t, "network/**")
		began := time.Now()
		var readers sync.WaitGroup
		for range 50 {
			readers.Go(func() {
				if got := text(t.Context(), store, s.failing, allowed...); !strings.HasPrefix(got, "error: ") {
					t.Errorf("got %q", got)
				}
			})
		}
		readers.Wait()
		took := time.Since(began)
		time.Sleep(time.Second)
		if n := s.count(s.failing); n != 1 || took != s.latency {
			t.Errorf("%d fetches, %s; want one, %s", n, took, s.latency)
		}
	})
}

// One fetch serves all who wait for it, and whoever leaves takes nothing away from the others.
func TestOneFlightForAll(t *testing.T) {
	s := newService(instanceData())
	s.latency = 500 * time.Millisecond
	running(t, s, "", func(t *testing.T, store *Store) {
		time.Sleep(time.Minute)
		allowed := patterns(t, "network/**")
		var readers sync.WaitGroup
		impatient, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		readers.Go(func() {
			if got := text(impatient, store, mac+"/vpc-id", allowed...); !strings.HasPrefix(got, "error: ") {
				t.Errorf("the one that left got %q", got)
			}
		})
		synctest.Wait()
		for range 50 {
			readers.Go(func() {
				if got := text(t.Context(), store, mac+"/vpc-id", allowed...); got != "vpc-1" {
					t.Errorf("got %q", got)
				}
			})
		}
		began := time.Now()
		readers.Wait()
		if n, took := s.count(mac+"/vpc-id"), time.Since(began); n != 1 || took != s.latency {
			t.Errorf("%d fetches, %s; want one, %s", n, took, s.latency)
		}
	})
}

// A pod that asks for whatever comes to its mind neither floods the service nor keeps others waiting.
func TestFlood(t *testing.T) {
	s := newService(instanceData())
	s.latency = 10 * time.Millisecond
	running(t, s, "", func(t *testing.T, store *Store) {
		time.Sleep(time.Minute)
		allowed := patterns(t, "network/**,spot/*")
		ctx, stop := context.WithCancel(t.Context())
		var before int
		s.set(func(s *service) { before = len(s.asked) })
		var flood sync.WaitGroup
		for worker := range 40 {
			flood.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					_, _, _ = store.Read(ctx, Request{
						Path: fmt.Sprintf("meta-data/network/%d/%d", worker, n), Source: netip.MustParseAddr("10.9.9.9"), Allowed: allowed,
					})
				}
			})
		}
		const length = 30
		time.Sleep(length * time.Second)
		for range 5 {
			began := time.Now()
			if got := text(t.Context(), store, notices, allowed...); got != "none" {
				t.Errorf("beside the flood: %q", got)
			}
			if took := time.Since(began); took > (maxFlying+1)*time.Second/flightsPerSecond+s.latency {
				t.Errorf("beside the flood: %s", took)
			}
			time.Sleep(10 * time.Second)
		}
		stop()
		flood.Wait()
		time.Sleep(time.Second) // what is in flight lands
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		most := flightBurst + flightsPerSecond*(length+51)
		if n := len(s.asked) - before; n > most+10 || n < most/2 {
			t.Errorf("%d fetches in %d s, want at most %d", n, length+51, most)
		}
		if s.most > pilots {
			t.Errorf("%d at the same time, want at most %d", s.most, pilots)
		}
		if n := store.entries.Len(); n > maxEntries {
			t.Errorf("%d answers are kept", n)
		}
		if len(store.flying) > 0 || store.landing.Parked(notices) > 0 {
			t.Errorf("left in flight: %v", store.flying)
		}
	})
}

// What goes to the node's service is a path, a token and what the SDK says of itself, whatever path a pod asks for.
func TestUpstreamRequests(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
			io.WriteString(w, "token")
			return
		}
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, fmt.Sprintf("%s %s %q", r.Method, r.RequestURI, body))
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			if !slices.Contains([]string{"Accept-Encoding", "Amz-Sdk-Request", "User-Agent", "X-Aws-Ec2-Metadata-Token"}, name) {
				t.Errorf("request for %s with header %s: %s", r.URL, name, r.Header[name])
			}
		}
		if r.URL.Path == "/latest/"+macs { // as on Xen
			http.Redirect(w, r, "/latest/"+macs+"/", http.StatusMovedPermanently)
			return
		}
		io.WriteString(w, "0a:1b/")
	}))
	defer server.Close()
	client := imds.New(imds.Options{
		Endpoint: server.URL, ClientEnableState: imds.ClientEnabled,
		HTTPClient: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	})
	store := NewStore(Config{Client: client})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	allowed := patterns(t, "network/interfaces/macs/**")
	for _, path := range []string{macs, mac + "/vpc-id", mac + "/a=b:c@d,e+f"} {
		if got := text(ctx, store, path, allowed...); got != "0a:1b/" {
			t.Errorf("%s: %q", path, got)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	asked = slices.DeleteFunc(asked, func(a string) bool { return !strings.Contains(a, "network") })
	if diff := cmp.Diff([]string{
		`GET /latest/` + macs + ` ""`,
		`GET /latest/` + macs + `/ ""`,
		`GET /latest/` + mac + `/vpc-id ""`,
		`GET /latest/` + mac + `/a=b:c@d,e+f ""`,
	}, asked); diff != "" {
		t.Errorf("requests upstream (-want +got):\n%s", diff)
	}
}

func TestStatic(t *testing.T) {
	labels := map[string]string{
		"topology.kubernetes.io/region":    "eu-west-1",
		"topology.kubernetes.io/zone":      "eu-west-1b",
		"topology.k8s.aws/zone-id":         "euw1-az2",
		"node.kubernetes.io/instance-type": "m6g.large",
		"kubernetes.io/hostname":           "ip-10-0-1-10.eu-west-1.compute.internal",
		"kubernetes.io/arch":               "arm64",
		"example.com/other":                "x",
	}
	node := FromLabels(labels)
	want := Static{
		Region: "eu-west-1", Zone: "eu-west-1b", ZoneID: "euw1-az2", InstanceType: "m6g.large",
		Hostname: "ip-10-0-1-10.eu-west-1.compute.internal", Architecture: "arm64",
	}
	if diff := cmp.Diff(want, node); diff != "" {
		t.Errorf("from labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Static{}, FromLabels(nil)); diff != "" {
		t.Errorf("from none (-want +got):\n%s", diff)
	}
	elsewhere := want
	elsewhere.Region, elsewhere.Zone, elsewhere.ZoneID = "us-east-1", "", ""
	overridden := want
	overridden.Zone, overridden.ZoneID = "eu-west-1c", ""
	confirmed := want
	confirmed.Region, confirmed.Zone, confirmed.ZoneID = "us-east-1", "us-east-1c", ""
	guess := Static{Region: "us-east-1", RegionGuessed: true}
	if diff := cmp.Diff(guess, guess.Or(Static{Region: "eu-west-1", RegionGuessed: true})); diff != "" {
		t.Errorf("one guess or another (-want +got):\n%s", diff)
	}
	for name, tt := range map[string]struct{ flags, want Static }{
		"nothing":           {Static{}, want},
		"region":            {Static{Region: "eu-west-1"}, want},
		"another_region":    {Static{Region: "us-east-1"}, elsewhere},
		"another_zone":      {Static{Zone: "eu-west-1c"}, overridden},
		"the_same_zone":     {Static{Region: "eu-west-1", Zone: "eu-west-1b"}, want},
		"nothing_to_add_to": {want, want},
		"guess":             {Static{Region: "us-east-1", RegionGuessed: true}, want},
		"confirmed_guess":   {Static{Region: "us-east-1", RegionGuessed: true, Zone: "us-east-1c"}, confirmed},
		"refuted_guess":     {Static{Region: "us-east-1", RegionGuessed: true, Zone: "eu-west-1c"}, overridden},
	} {
		if diff := cmp.Diff(tt.want, tt.flags.Or(node)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	all := contents(fromStatic(want))
	const document = `{
  "architecture" : "arm64",
  "availabilityZone" : "eu-west-1b",
  "instanceType" : "m6g.large",
  "region" : "eu-west-1",
  "version" : "2017-09-30"
}`
	for path, want := range map[string]string{
		"meta-data/instance-type":                  "m6g.large",
		"meta-data/hostname":                       "ip-10-0-1-10.eu-west-1.compute.internal",
		"meta-data/local-hostname":                 "ip-10-0-1-10.eu-west-1.compute.internal",
		"meta-data/placement/availability-zone-id": "euw1-az2",
		"meta-data":                                "hostname\niam/\ninstance-type\nlocal-hostname\nplacement/\nservices/",
		"dynamic/instance-identity/document":       document,
	} {
		if all[path] != want {
			t.Errorf("%s: %q, want %q", path, all[path], want)
		}
	}
	least := contents(newSnapshot(Policy{}.limit(want).leaves(), nil))
	for _, path := range []string{"meta-data/instance-type", "meta-data/hostname", "meta-data/local-hostname"} {
		if _, ok := least[path]; ok {
			t.Errorf("%s is served though instance facts are not allowed", path)
		}
	}
	if strings.Contains(least["dynamic/instance-identity/document"], "m6g") {
		t.Error("the document says what instance facts do not")
	}
}

var errNever = errors.New("never")

// What every pod may read costs no allocation.
func TestReadAllocates(t *testing.T) {
	store := NewStore(Config{Static: Static{Region: "eu-west-1"}})
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, found, err := store.Read(ctx, Request{Path: pathRegion, Source: someone}); !found || err != nil {
			panic(errNever)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
