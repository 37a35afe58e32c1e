package owner

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// claimPrefix begins the file name of every claim.
const claimPrefix = "claim-"

// claim names a pipe. The zero claim is below every other.
type claim struct {
	generation uint64
	id         string // random: in a folder that was emptied generations begin anew, while earlier claims may live
}

// String returns the file name.
func (c claim) String() string { return fmt.Sprintf("%s%d-%s", claimPrefix, c.generation, c.id) }

// parseClaim reads a file name. It takes what String writes and nothing else.
func parseClaim(file string) (c claim, ok bool) {
	rest, ok := strings.CutPrefix(file, claimPrefix)
	if !ok {
		return claim{}, false
	}
	number, id, _ := strings.Cut(rest, "-")
	generation, err := strconv.ParseUint(number, 10, 64)
	if err != nil || generation == 0 || id == "" {
		return claim{}, false
	}
	if c = (claim{generation, id}); c.String() != file { // claim-007-X
		return claim{}, false
	}
	return c, true
}

// compare is that of [cmp.Compare].
func (c claim) compare(other claim) int {
	return cmp.Or(cmp.Compare(c.generation, other.generation), cmp.Compare(c.id, other.id))
}
