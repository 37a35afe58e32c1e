package agent

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/owner"
)

// TestNoAgent: an agent that has started, and has claimed nothing yet, keeps an uninstall from taking away what it would put
// back.
func TestNoAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for _, where := range []string{"", dir} { // there is none
		if err := noAgent(where); err != nil {
			t.Errorf("--state-dir=%s: %v", where, err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	starting, err := owner.Open(owner.Config{Dir: claimsOf(dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer starting.Resign()
	if err := noAgent(dir); err == nil {
		t.Error("an agent that starts is not seen")
	}
	if err := removeState(dir); err == nil {
		t.Error("its state was removed")
	}
	starting.Resign()
	if err := removeState(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is still there")
	}
}

// TestStateIsGone: an agent whose --state-dir was deleted is to be restarted, and says so once.
func TestStateIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	a := &agent{logger: logger, health: &health{logger: logger}, cfg: config.Config{State: config.State{Dir: dir, OnDisk: true}}}
	served := handler(http.NotFoundHandler(), a.health)
	expect := func(want int, when string) {
		t.Helper()
		got := httptest.NewRecorder()
		served.ServeHTTP(got, httptest.NewRequest(http.MethodGet, "/healthz", nil))
		if got.Code != want {
			t.Errorf("%s: %d, want %d", when, got.Code, want)
		}
	}
	expect(http.StatusOK, "without --state-dir")
	if _, err := a.openState(); err != nil {
		t.Fatal(err)
	}
	expect(http.StatusOK, "while it is there")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		expect(http.StatusServiceUnavailable, "once it is deleted")
	}
	if n := strings.Count(log.String(), "was deleted"); n != 1 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
	if err := a.state.Close(); err != nil {
		t.Error(err)
	}
	expect(http.StatusOK, "at the end")
}
