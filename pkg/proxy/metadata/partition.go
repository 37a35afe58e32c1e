package metadata

import "strings"

// partition is an AWS partition as services/partition and services/domain name it.
type partition struct {
	name   string
	domain string
}

// partitionOf returns the partition of region. The names, suffixes and region prefixes are those of the SDK's
// endpoint rules (aws-sdk-go-v2, internal/endpoints/awsrulesfn/partitions.json); like there, a region of no known
// prefix is taken to be in the standard partition.
func partitionOf(region string) partition {
	for _, p := range []struct {
		prefix string
		partition
	}{
		{"cn-", partition{"aws-cn", "amazonaws.com.cn"}},
		{"us-gov-", partition{"aws-us-gov", "amazonaws.com"}},
		{"eusc-", partition{"aws-eusc", "amazonaws.eu"}},
		{"us-iso-", partition{"aws-iso", "c2s.ic.gov"}},
		{"us-isob-", partition{"aws-iso-b", "sc2s.sgov.gov"}},
		{"eu-isoe-", partition{"aws-iso-e", "cloud.adc-e.uk"}},
		{"us-isof-", partition{"aws-iso-f", "csp.hci.ic.gov"}},
	} {
		if strings.HasPrefix(region, p.prefix) {
			return p.partition
		}
	}
	return partition{"aws", "amazonaws.com"}
}
