package agent

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/telemetry"
)

func TestReadyMeansWholeAndLookedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		repairs := 0
		var told []string
		h := &health{every: time.Second, logger: slog.New(slog.DiscardHandler), report: func(repaired, _ bool) {
			if repaired {
				repairs++
			}
		}, warn: func(reason, _ string) { told = append(told, reason) }}
		expect := func(want bool, when string) {
			t.Helper()
			if (h.ready() == nil) != want {
				t.Errorf("ready = %v %s", !want, when)
			}
		}
		expect(false, "before anything is installed")
		h.install(true)
		expect(true, "once installed")
		h.checked("rules", true, nil)
		expect(true, "after a repair")
		h.checked("guard", false, errors.New("no"))
		expect(false, "while one half is not whole")
		h.checked("rules", false, nil)
		expect(false, "whatever the other half says")
		h.checked("guard", false, nil)
		expect(true, "once it is whole again")
		time.Sleep(time.Minute)
		expect(false, "when nobody has looked for a minute")
		h.checked("guard", false, nil)
		expect(false, "when only one half is looked after")
		h.checked("rules", false, nil)
		expect(true, "when both are")
		h.install(false)
		expect(false, "at the end")
		if repairs != 1 {
			t.Errorf("%d repairs reported, want 1", repairs)
		}
		if diff := cmp.Diff([]string{telemetry.EventRepaired, telemetry.EventNotWhole}, told); diff != "" {
			t.Errorf("the node's owner was told (-want +got):\n%s", diff)
		}
	})
}
