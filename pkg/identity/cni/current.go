package cni

import (
	"cmp"
	"slices"
)

// Current picks, from all results, the sandbox that counts for each pod UID. exists tells whether a network namespace
// still does; it is asked at most once for a sandbox.
func Current(all []Sandbox, exists func(netns string) bool) map[string]Sandbox {
	current, _ := judge(all, exists)
	return current
}

// judge is Current, with the verdict on each result.
func judge(all []Sandbox, exists func(netns string) bool) (map[string]Sandbox, []Verdict) {
	j := judgement{all: all, exists: exists, verdicts: make([]Verdict, len(all))}
	for i := range all {
		j.verdicts[i] = Superseded
	}
	for _, results := range group(j.outermost(), func(i int) string { return all[i].PodUID }) {
		if i, ok := j.newest(results); ok {
			j.verdicts[i] = Counted
		}
	}
	claims := j.claims()
	j.succeed(claims)
	return j.collect(claims), j.verdicts
}

// judgement is about all, by index.
type judgement struct {
	all      []Sandbox
	exists   func(netns string) bool
	verdicts []Verdict
}

// outermost returns one result for each sandbox: the last, which is that of the plugin that called the others.
func (j *judgement) outermost() []int {
	var outermost []int
	for _, results := range group(indices(j.all), func(i int) string { return j.all[i].ID }) {
		outermost = append(outermost, slices.MaxFunc(results, func(a, b int) int {
			return cmp.Or(j.all[a].Written.Compare(j.all[b].Written), cmp.Compare(j.all[a].Network, j.all[b].Network))
		}))
	}
	return outermost
}

// newest returns the newest of one pod's sandboxes, if it lives. An older one that lives does not stand in for it: its
// address may be free for others. Among sandboxes of the same age it is the one that lives, if that is one.
func (j *judgement) newest(sandboxes []int) (int, bool) {
	latest := slices.MaxFunc(sandboxes, j.compareAge)
	var living []int
	for _, i := range sandboxes {
		switch {
		case j.compareAge(i, latest) != 0:
		case j.exists(j.all[i].NetNS):
			living = append(living, i)
		default:
			j.verdicts[i] = Stale
		}
	}
	if len(living) != 1 {
		return 0, false
	}
	return living[0], true
}

// claims returns, by interface of the node, the sandboxes that count and name it.
func (j *judgement) claims() map[string][]int {
	claims := make(map[string][]int)
	for i, s := range j.all {
		if j.verdicts[i] != Counted {
			continue
		}
		for _, name := range append([]string{s.HostInterface}, s.OtherInterfaces...) {
			if name != "" {
				claims[name] = append(claims[name], i)
			}
		}
	}
	return claims
}

// succeed finds the sandboxes whose interface is another one's by now. Some plugins derive its name from the pod's
// namespace and name, so that the next pod of a StatefulSet has it again while the sandbox of the last one is still
// being torn down. A link has one other end: it is the newest one's.
func (j *judgement) succeed(claims map[string][]int) {
	for _, claimants := range claims {
		if len(claimants) == 1 || !j.sameName(claimants) {
			continue
		}
		latest := slices.MaxFunc(claimants, j.compareAge)
		for _, i := range claimants {
			if i != latest {
				j.verdicts[i] = Superseded
				if j.compareAge(i, latest) == 0 {
					j.verdicts[latest] = Superseded
				}
			}
		}
	}
}

// collect returns the sandboxes that count. An interface that pods of different names share is not their own.
func (j *judgement) collect(claims map[string][]int) map[string]Sandbox {
	current := make(map[string]Sandbox)
	for i, s := range j.all {
		if j.verdicts[i] != Counted {
			continue
		}
		shared := func(name string) bool { return len(claims[name]) > 1 && !j.sameName(claims[name]) }
		if shared(s.HostInterface) {
			s.HostInterface = ""
		}
		if slices.ContainsFunc(s.OtherInterfaces, shared) {
			s.OtherInterfaces = slices.DeleteFunc(slices.Clone(s.OtherInterfaces), shared)
		}
		current[s.PodUID] = s
	}
	return current
}

func (j *judgement) sameName(sandboxes []int) bool {
	first := j.all[sandboxes[0]]
	return !slices.ContainsFunc(sandboxes, func(i int) bool {
		return j.all[i].Namespace != first.Namespace || j.all[i].Name != first.Name
	})
}

func (j *judgement) compareAge(a, b int) int { return j.all[a].Written.Compare(j.all[b].Written) }

// group returns the indices by key.
func group(indices []int, key func(int) string) map[string][]int {
	groups := make(map[string][]int)
	for _, i := range indices {
		groups[key(i)] = append(groups[key(i)], i)
	}
	return groups
}

func indices(all []Sandbox) []int {
	indices := make([]int, len(all))
	for i := range all {
		indices[i] = i
	}
	return indices
}
