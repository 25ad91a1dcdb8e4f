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
	if got := diagnose(t, c.URL()); !slices.Equal(got, []string{"identity"}) {
		t.Errorf("found %v, want identity", got)
	}
	all := c.URL() // with the one that is stopped
	c.Stop((c.LeaderOf(bucket) + 1) % 3)
	want := []string{"identity", "replicas", "routes"}
	var got []string
	for ctx := within(t, patience); !slices.Equal(got, want); {
		got = diagnose(t, all)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("found %v, want %v", got, want)
		}
	}
	join(t, c.URL(), "b")
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
