package metadata

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/google/go-cmp/cmp"
)

// contents returns a snapshot's answers as strings.
func contents(s *snapshot) map[string]string {
	all := make(map[string]string)
	for path, body := range s.answers {
		all[path] = string(body)
	}
	return all
}

// fromStatic is what pods are told where there is no service.
func fromStatic(static Static) *snapshot {
	return NewStore(Config{Policy: Policy{InstanceFacts: true}, Static: static}).public.Load()
}

// load is what pods are told after one try to fetch it, and why it failed.
func load(ctx context.Context, client Client, policy Policy, static Static) (*snapshot, error) {
	store := NewStore(Config{Client: client, Policy: policy, Static: static})
	err := store.load(ctx)
	return store.public.Load(), err
}

func TestStaticAlone(t *testing.T) {
	const document = `{
  "availabilityZone" : "cn-north-1a",
  "region" : "cn-north-1",
  "version" : "2017-09-30"
}`
	tests := []struct {
		name   string
		static Static
		want   map[string]string
	}{
		{"nothing", Static{}, map[string]string{
			"":                          "dynamic\nmeta-data",
			"dynamic":                   "instance-identity/",
			"dynamic/instance-identity": "",
			"meta-data":                 "iam/",
			"meta-data/iam":             "info\nsecurity-credentials/",
		}},
		{"region_and_zone", Static{Region: "cn-north-1", Zone: "cn-north-1a"}, map[string]string{
			"":                                      "dynamic\nmeta-data",
			"dynamic":                               "instance-identity/",
			"dynamic/instance-identity":             "document",
			"dynamic/instance-identity/document":    document,
			"meta-data":                             "iam/\nplacement/\nservices/",
			"meta-data/iam":                         "info\nsecurity-credentials/",
			"meta-data/placement":                   "availability-zone\nregion",
			"meta-data/placement/availability-zone": "cn-north-1a",
			"meta-data/placement/region":            "cn-north-1",
			"meta-data/services":                    "domain\npartition",
			"meta-data/services/domain":             "amazonaws.com.cn",
			"meta-data/services/partition":          "aws-cn",
		}},
		{"zone_alone", Static{Zone: "a\"b"}, map[string]string{
			"":                                      "dynamic\nmeta-data",
			"dynamic":                               "instance-identity/",
			"dynamic/instance-identity":             "",
			"meta-data":                             "iam/\nplacement/",
			"meta-data/iam":                         "info\nsecurity-credentials/",
			"meta-data/placement":                   "availability-zone",
			"meta-data/placement/availability-zone": "a\"b",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, contents(fromStatic(tt.static))); diff != "" {
				t.Errorf("snapshot (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPartitions(t *testing.T) {
	for region, want := range map[string]partition{
		"us-east-1":       {"aws", "amazonaws.com"},
		"us-gov-west-1":   {"aws-us-gov", "amazonaws.com"},
		"cn-northwest-1":  {"aws-cn", "amazonaws.com.cn"},
		"us-iso-east-1":   {"aws-iso", "c2s.ic.gov"},
		"us-isob-east-1":  {"aws-iso-b", "sc2s.sgov.gov"},
		"us-isof-south-1": {"aws-iso-f", "csp.hci.ic.gov"},
		"eu-isoe-west-1":  {"aws-iso-e", "cloud.adc-e.uk"},
		"eusc-de-east-1":  {"aws-eusc", "amazonaws.eu"},
		"local":           {"aws", "amazonaws.com"},
	} {
		if got := partitionOf(region); got != want {
			t.Errorf("partition of %s: %v, want %v", region, got, want)
		}
	}
}

// instance is a metadata service that has everything, secrets too, and records what it is asked for.
type instance struct {
	mu     sync.Mutex
	asked  []string
	says   map[string]string // by path; what is not here says that it is the node's
	fail   map[string]int    // paths that answer with an error's status
	absent string            // the path that answers 404
	large  string            // the path whose answer does not end
}

func (i *instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/latest/api/token" {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		io.WriteString(w, "token")
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/latest/")
	i.mu.Lock()
	i.asked = append(i.asked, path)
	i.mu.Unlock()
	if status := i.fail[path]; status != 0 {
		w.WriteHeader(status)
		return
	}
	switch path {
	case i.absent:
		w.WriteHeader(http.StatusNotFound)
	case i.large:
		io.WriteString(w, strings.Repeat("x", maxLeaf+1))
	default:
		body, ok := i.says[path]
		if !ok {
			body = "node's " + path
		}
		io.WriteString(w, body)
	}
}

// client returns the SDK's own client for i, without retries.
func (i *instance) client(t *testing.T) *imds.Client {
	server := httptest.NewServer(i)
	t.Cleanup(server.Close)
	return imds.New(imds.Options{
		Endpoint:          server.URL,
		ClientEnableState: imds.ClientEnabled,
		Retryer:           aws.NopRetryer{},
	})
}

var always = []string{
	"dynamic/instance-identity/document",
	"meta-data/placement/availability-zone",
	"meta-data/placement/availability-zone-id",
	"meta-data/placement/region",
	"meta-data/services/domain",
	"meta-data/services/partition",
}

var facts = []string{
	"meta-data/ami-id",
	"meta-data/hostname",
	"meta-data/instance-id",
	"meta-data/instance-life-cycle",
	"meta-data/instance-type",
	"meta-data/local-hostname",
	"meta-data/local-ipv4",
	"meta-data/mac",
}

func TestLoad(t *testing.T) {
	static := Static{Region: "eu-west-1", Zone: "eu-west-1b"}
	for name, policy := range map[string]Policy{"facts": {InstanceFacts: true}, "least": {}} {
		t.Run(name, func(t *testing.T) {
			want := slices.Clone(always)
			if policy.InstanceFacts {
				want = append(want, facts...)
			}
			slices.Sort(want)
			i := &instance{}
			s, err := load(t.Context(), i.client(t), policy, static)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(i.asked)
			if diff := cmp.Diff(want, i.asked); diff != "" {
				t.Errorf("asked the node's service for (-want +got):\n%s", diff)
			}
			var got []string
			for path, body := range contents(s) {
				if strings.HasPrefix(body, "node's ") {
					got = append(got, path)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("serves (-want +got):\n%s", diff)
			}
		})
	}
}

// What the service lacks, or fails at, comes from the static values, if that fits; the error says what it was, and the rest
// is asked for all the same.
func TestLoadFallsBack(t *testing.T) {
	near, far := Static{Region: "eu-west-1", Zone: "eu-west-1b"}, Static{Region: "us-east-1", Zone: "us-east-1b"}
	tests := []struct {
		name   string
		node   *instance
		static Static
		err    string
		region string
		zone   string
	}{
		{"all_there", &instance{}, far, "", "eu-west-1", "eu-west-1a"},
		{"absent", &instance{absent: pathZone}, near, "", "eu-west-1", "eu-west-1b"},
		{"absent_elsewhere", &instance{absent: pathZone}, far, "", "eu-west-1", ""},
		{"fails_at_once", &instance{fail: map[string]int{pathRegion: 500}}, near, pathRegion, "eu-west-1", "eu-west-1a"},
		{"fails_later", &instance{fail: map[string]int{pathZone: 500}}, near, pathZone, "eu-west-1", "eu-west-1b"},
		{"too_large", &instance{large: pathZone}, near, pathZone, "eu-west-1", "eu-west-1b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.node.says = map[string]string{pathRegion: "eu-west-1", pathZone: "eu-west-1a"}
			s, err := load(t.Context(), tt.node.client(t), Policy{}, tt.static)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want one about %q", err, tt.err)
			}
			all := contents(s)
			if all[pathRegion] != tt.region || all[pathZone] != tt.zone {
				t.Errorf("region %q and zone %q, want %q and %q", all[pathRegion], all[pathZone], tt.region, tt.zone)
			}
			for _, path := range []string{pathZoneID, pathDomain, pathPartition, pathDocument} {
				if all[path] != "node's "+path {
					t.Errorf("%s: %q, want what the service says", path, all[path])
				}
			}
		})
	}
}

// The SDK's client asks for each path once, whatever the answer is, so that those that fail take nothing from the others.
// Only they are asked for again.
func TestLoadAsksOnce(t *testing.T) {
	i := &instance{fail: map[string]int{
		pathRegion: http.StatusServiceUnavailable, pathZone: http.StatusInternalServerError, pathZoneID: http.StatusServiceUnavailable,
		pathDomain: http.StatusServiceUnavailable, pathPartition: http.StatusInternalServerError, "meta-data/mac": http.StatusServiceUnavailable,
	}}
	policy := Policy{InstanceFacts: true}
	store := NewStore(Config{Client: i.client(t), Policy: policy})
	want := policy.leaves()
	for round := range 2 {
		i.asked = nil
		if err := store.load(t.Context()); statusOf(err) != i.fail[pathRegion] || !strings.Contains(err.Error(), pathRegion) {
			t.Errorf("round %d: %v, want the failure of %s", round, err, pathRegion)
		}
		if diff := cmp.Diff(want, i.asked); diff != "" {
			t.Errorf("round %d asks for (-want +got):\n%s", round, diff)
		}
		for _, path := range policy.leaves() {
			_, known := store.public.Load().get(path)
			if fails := i.fail[path] != 0; known == fails {
				t.Errorf("round %d: %s fails: %v; it is known: %v", round, path, fails, known)
			}
		}
		want = slices.DeleteFunc(want, func(path string) bool { return i.fail[path] == 0 })
	}
}

// unreachable is a service that is not there; it counts how often somebody waits to find out.
type unreachable struct{ tries int }

var errUnreachable = errors.New("no route to host")

func (u *unreachable) GetMetadata(
	context.Context, *imds.GetMetadataInput, ...func(*imds.Options),
) (*imds.GetMetadataOutput, error) {
	u.tries++
	return nil, errUnreachable
}

func (u *unreachable) GetDynamicData(
	context.Context, *imds.GetDynamicDataInput, ...func(*imds.Options),
) (*imds.GetDynamicDataOutput, error) {
	u.tries++
	return nil, errUnreachable
}

func TestLoadOffEC2(t *testing.T) {
	u := &unreachable{}
	static := Static{Region: "eu-west-1", Zone: "eu-west-1b"}
	policy := Policy{InstanceFacts: true}
	s, err := load(t.Context(), u, policy, static)
	if want := len(policy.leaves()); !errors.Is(err, errUnreachable) || u.tries != want {
		t.Errorf("error %v after %d tries, want the cause after %d", err, u.tries, want)
	}
	if diff := cmp.Diff(contents(fromStatic(static)), contents(s)); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}
