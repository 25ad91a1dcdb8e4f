package natstest

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A Mutant is a deliberately broken variant of the module, which tests must catch: a
// text replaced in one file, laid over the module by go test -overlay; the file itself
// stays as it is.
type Mutant struct {
	Name     string
	File     string // from the module's root, with slashes
	Old, New string
	// Suites are the tests to run against it, until one fails.
	Suites []Suite
}

// A Suite is a package, as ./fabric, and a pattern of its tests.
type Suite struct{ Pkg, Run string }

// Mutants checks that each mutant still fits its file and, if run is set, that one of
// its suites fails. The caller's package must be below the module's root, whose path
// from it is root.
func Mutants(t *testing.T, root string, run bool, mutants []Mutant) {
	t.Helper()
	root, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants { // always, so that they keep up with the files
		m.layOver(t, root)
	}
	if !run {
		t.Skip("runs other tests for minutes: see -mutate")
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.Name, "'", ""), func(t *testing.T) {
			overlay := m.layOver(t, root)
			for _, s := range m.Suites {
				if found := s.failing(t, root, overlay); found != "" {
					t.Logf("caught by %s %s", s.Pkg, found)
					return
				}
				t.Logf("not caught by %s %s", s.Pkg, s.Run)
			}
			t.Error("not caught")
		})
	}
}

// layOver writes the changed file and the overlay that puts it in place of the other.
func (m Mutant) layOver(t *testing.T, root string) (overlay string) {
	t.Helper()
	file := filepath.Join(root, filepath.FromSlash(m.File))
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.Old); n != 1 {
		t.Fatalf("%s: %s has the text to replace %d times, want once:\n%s", m.Name, m.File, n, m.Old)
	}
	dir := t.TempDir()
	mutant := filepath.Join(dir, "mutant.go")
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(text), m.Old, m.New, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]map[string]string{"Replace": {file: mutant}})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// A test fails, or takes the others with it: out of time, or deadlocked in a bubble.
var fails = regexp.MustCompile(`(?m)^--- FAIL: (\S+)|^(?:panic|fatal error): (.{1,60})`)

// failing returns the name of a test of the suite that fails, or "".
func (s Suite) failing(t *testing.T, root, overlay string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout", "120s", "-overlay", overlay, "-run", s.Run, s.Pkg)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok || strings.Contains(string(out), "[build failed]") || strings.Contains(string(out), "[setup failed]") {
		t.Fatalf("the variant cannot be tested: %v\n%s", err, out)
	}
	found := fails.FindStringSubmatch(string(out))
	if found == nil {
		t.Fatalf("the tests failed otherwise: %v\n%s", err, out)
	}
	return found[1] + found[2]
}
