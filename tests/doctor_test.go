package tests

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestDoctorOfACluster: on three servers all is well but for the missing
// authentication; when one is stopped, the copy on it and the server itself are
// reported.
func TestDoctorOfACluster(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	join(t, c.URL(), "a")
	awaitDiagnosis(t, c.URL(), "identity") // a copy may be behind for a moment
	all := c.URL()                         // with the one that is stopped
	c.Stop((c.LeaderOf(bucket) + 1) % 3)
	awaitDiagnosis(t, all, "identity", "replicas", "routes")
	join(t, c.URL(), "b")
}

// awaitDiagnosis runs doctor until these checks find something, and no others.
func awaitDiagnosis(t *testing.T, url string, want ...string) {
	t.Helper()
	for ctx := within(t, patience); ; {
		got := diagnose(t, url)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("found %v, want %v", got, want)
		}
	}
}

// diagnose runs doctor and returns the checks that found something, each once.
func diagnose(t *testing.T, url string) (checks []string) {
	t.Helper()
	out, err := exec.CommandContext(within(t, patience), fabricNode(t), "doctor", "-k", "t", "-s", url, "-o", "json").Output()
	var found struct {
		Findings []struct{ Check, Severity, Message, Fix string }
	}
	if jsonErr := json.Unmarshal(out, &found); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	for _, f := range found.Findings {
		if f.Severity == "ok" {
			continue
		}
		if strings.TrimSpace(f.Fix) == "" {
			t.Errorf("%s: %s: there is no fix", f.Check, f.Message)
		}
		checks = append(checks, f.Check)
	}
	slices.Sort(checks)
	return slices.Compact(checks)
}
