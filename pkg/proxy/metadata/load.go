package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Client reads the node's own metadata service. *imds.Client implements it; the caller sets its time-outs, and that it
// does not retry.
type Client interface {
	GetMetadata(
		context.Context, *imds.GetMetadataInput, ...func(*imds.Options),
	) (*imds.GetMetadataOutput, error)
	GetDynamicData(
		context.Context, *imds.GetDynamicDataInput, ...func(*imds.Options),
	) (*imds.GetDynamicDataOutput, error)
}

// Policy says which categories beyond the ones that every SDK needs are allowed.
type Policy struct {
	// InstanceFacts allows what identifies the node but opens nothing: instance-id, instance-type,
	// instance-life-cycle, hostname, local-hostname, local-ipv4, mac and ami-id. The Go SDK asks for the
	// instance-id to find out whether there is a metadata service at all.
	InstanceFacts bool
}

// leaves returns the leaves that p allows. User data, identity credentials, signatures of the identity document,
// public keys, tags and network data are in none of the categories.
func (p Policy) leaves() []string {
	leaves := []string{
		pathRegion,
		pathZone,
		pathZoneID,
		pathDomain,
		pathPartition,
		pathDocument,
	}
	if p.InstanceFacts {
		leaves = append(leaves,
			"meta-data/instance-id",
			pathInstanceType,
			"meta-data/instance-life-cycle",
			pathHostname,
			pathLocalName,
			"meta-data/local-ipv4",
			"meta-data/mac",
			"meta-data/ami-id",
		)
	}
	return leaves
}

// limit returns what p allows of s.
func (p Policy) limit(s Static) Static {
	if !p.InstanceFacts {
		s.InstanceType, s.Hostname, s.Architecture = "", "", ""
	}
	return s
}

// maxLeaf bounds one answer, in bytes. The identity document is below 1 KiB, and so is a listing of fifty interfaces.
const maxLeaf = 16 << 10

// get fetches what is at path. Nothing else is in the request that a pod might have had a say in.
func get(ctx context.Context, client Client, path string) ([]byte, error) {
	content, err := open(ctx, client, path)
	if isRedirect(err) { // on Xen, a listing is behind a slash
		content, err = open(ctx, client, path+"/")
	}
	if err != nil {
		return nil, err
	}
	defer content.Close()
	body, err := io.ReadAll(io.LimitReader(content, maxLeaf+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxLeaf {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxLeaf)
	}
	return body, nil
}

func open(ctx context.Context, client Client, path string) (io.ReadCloser, error) {
	if rest, ok := strings.CutPrefix(path, "dynamic/"); ok {
		out, err := client.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: rest})
		if err != nil {
			return nil, err
		}
		return out.Content, nil
	}
	out, err := client.GetMetadata(ctx, &imds.GetMetadataInput{Path: strings.TrimPrefix(path, "meta-data/")})
	if err != nil {
		return nil, err
	}
	return out.Content, nil
}

// isNotFound reports whether the service answered that it has no such leaf.
func isNotFound(err error) bool { return statusOf(err) == http.StatusNotFound }

func isRedirect(err error) bool { return statusOf(err) == http.StatusMovedPermanently }

// statusOf returns the status that the service answered with, if that is what the error is about.
func statusOf(err error) int {
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		return response.HTTPStatusCode()
	}
	return 0
}
