package rotation

import (
	"fmt"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/testbed"
)

// refreshed is the share of a session's life after which podrole mints the next one, about: shortly before its half.
const refreshed = 0.475

// AddPods adds pods to bed, each with a ServiceAccount and a role of its own, and has STS take latency for every call
// and give sessions that are all refreshed at once, every [Period]. Call it before the agent starts.
func AddPods(bed *testbed.Bed, pods int, latency time.Duration) ([]Pod, error) {
	for _, action := range []string{"AssumeRole", "AssumeRoleWithWebIdentity"} {
		if _, err := bed.AWS.Inject(awstest.Fault{Service: "sts", Action: action, Latency: latency}); err != nil {
			return nil, err
		}
	}
	bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return lifeFrom(time.Now(), latency) })
	var added []Pod
	for i := range pods {
		name := fmt.Sprintf("app-%d", i)
		role, err := bed.AddRole(name, "load", name)
		if err != nil {
			return nil, err
		}
		if err := bed.AddServiceAccount("load", name, role); err != nil {
			return nil, err
		}
		pod, err := bed.AddPod("load", name+"-0", name)
		if err != nil {
			return nil, err
		}
		added = append(added, Pod{Pod: pod, Role: role})
	}
	return added, nil
}

// Period is the time from one round of rotations to the next: twice the time that a rotation takes, so that there is
// as much time beside it, and what the rounds are not exact by.
func Period(latency time.Duration) time.Duration {
	const slack = 500 * time.Millisecond
	return 2*(before+latency+after) + slack
}

// lifeFrom returns the life of a session minted at now, so that it is refreshed when the next round begins. AWS tells
// the end of a session in whole seconds, and the agent adds jitter: rounds are exact to some tenths of a second.
func lifeFrom(now time.Time, latency time.Duration) time.Duration {
	// So that a session that is being refreshed lives until the next one comes.
	const reserve = 600 * time.Millisecond
	period := Period(latency)
	next := now.Truncate(period).Add(period)
	if next.Sub(now) < latency+reserve {
		next = next.Add(period)
	}
	const half = time.Second / 2 // awstest cuts off
	return time.Duration(float64(next.Sub(now))/refreshed) + half
}
