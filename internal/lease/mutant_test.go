package lease_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Deliberately broken variants of the protocol, which the tests must catch:
//
//	go test ./internal/lease -run Mutants -mutate -v -timeout 60m
//	go test ./internal/lease -run Mutants/death_guard -mutate -v
//
// A variant is a text replaced in one file, laid over the module by go test
// -overlay; the files themselves stay as they are. Every variant must fail one of
// the tests it is run against; the first is the hour of churn, unless it cannot
// tell by its nature.
var mutate = flag.Bool("mutate", false, "run the broken variants of TestMutants")

// A suite is a package and which of its tests to run.
type suite struct{ pkg, run string }

var (
	churn   = suite{"./election", "TestChurn"}
	elects  = suite{"./election", "Test"}
	leases  = suite{"./internal/lease", "Test"}
	buckets = suite{"./internal/kv", "Test"}
	rosters = suite{"./internal/roster", "Test"}
	members = suite{"./fabric", "Test"}
)

var mutants = []struct {
	name, file, old, new string
	suites               []suite
}{
	{"deadline from ack", "internal/lease/renew.go",
		"			s.acked(failed)\n", "			s.acked(failed)\n			sent = s.cfg.Clock.Now()\n", []suite{churn, leases}},
	{"no deadline", "internal/lease/timing.go",
		"return lease - margin(lease)", "return 2 * lease", []suite{churn}},
	{"a grant outlives its deadline", "internal/lease/hold.go",
		"	return !h.ended.Load() && h.left(grace) > 0\n", "	return h.cause == nil || h.cause == ErrLost\n", []suite{churn, leases}},
	{"no renewal guard", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.Key, "s.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	} else {
		w.GuardKey = ""
	}
	_ =`, []suite{churn, leases}},
	{"no death guard", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.GuardKey, "s.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	} else {
		w.GuardKey = ""
	}
	_ =`, []suite{churn, leases}},
	{"no guard of a claim", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.Key, "c.e.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	}
	_ =`, []suite{churn}},
	{"challenger's own lease", "internal/lease/watcher.go",
		"w.v.See(e.Rev, r.Lease(), e.Seen)", "w.v.See(e.Rev, w.s.cfg.Lease, e.Seen)", []suite{churn}},
	{"impatient challenger", "internal/lease/timing.go",
		"	return lease + time.Duration(float64(lease)*drift) + slack\n", "	return lease / 2\n", []suite{churn}},
	{"an unknown death counts", "internal/lease/watcher.go",
		"	case err == nil:\n		return true, 0\n", "	case err == nil, errors.Is(err, kv.ErrUnknown):\n		return true, 0\n", []suite{churn, leases}},
	{"a refused death counts", "internal/lease/watcher.go",
		"	case err == nil:\n		return true, 0\n", "	case err == nil, errors.Is(err, kv.ErrRefused):\n		return true, 0\n", []suite{churn, leases}},
	{"the feed decides", "internal/lease/watcher.go",
		"		if told { //", "		if told {\n			return nil\n		}\n		if told { //", []suite{churn, leases}},
	{"no re-reading", "internal/kv/watch.go",
		"time.NewTimer(Reread*4/5 + rand.N(Reread*2/5))", "time.NewTimer(1000*time.Hour + rand.N(Reread))", []suite{churn, buckets}},
	{"no FirstSeq", "internal/kv/open.go",
		"max(uint64(now.UnixMicro()), highest+1),\n", "highest - highest,\n", []suite{churn, buckets}},
	{"a new bucket is open at once", "internal/kv/open.go",
		"	wait := b.Longest()\n", "	wait := time.Duration(0)\n", []suite{churn, buckets}},
	{"nobody asks who is there", "internal/kv/open.go",
		"	ask := made || newcomer\n", "	ask := made && !newcomer\n", []suite{churn, elects}},
	{"guard 0 counts in a new bucket", "internal/kv/settle.go",
		"	if rev != 0 {\n		return nil\n	}\n", "	if rev >= 0 {\n		return nil\n	}\n", []suite{churn, buckets}},
	{"a claim in doubt is forgotten", "internal/lease/claim.go",
		"			c.giveUp(d) // and the turn with it\n", "			_ = d\n			<-c.turn\n", []suite{churn, leases}},
	{"a lost ack is a refusal", "internal/kv/settle.go",
		"			doubt = true\n", "			return 0, ErrRefused\n", []suite{churn, buckets}},
	{"a lost term is kept", "internal/lease/grant.go",
		"			g.Release(s.life) //", "			_ = g.err //", []suite{churn, leases}},
	{"release before the work ends", "election/election.go",
		"	err = f(term, t)\n", "	defer context.AfterFunc(term, func() { t.Resign(context.WithoutCancel(ctx)) })()\n	err = f(term, t)\n", []suite{churn, elects}},
	{"the view's token does not count", "internal/roster/coordinate.go",
		"v.Token > token {", "v.Token > token && false {", []suite{rosters, members}},
	{"an old session ends a young incarnation", "internal/lease/watcher.go",
		"	if e.Seen.Before(w.born) {\n", "	if false {\n", []suite{churn, leases}},
	{"a grace used up stays so", "internal/lease/hold.go",
		"	delete(h.fuses, grace) //", "	//", []suite{churn, leases}},
	{"a challenge during an outage", "internal/lease/renew.go",
		"	if s.outageOf > outage(v.lease) {\n", "	if false {\n", []suite{members}},
}

func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants { // always, so that they keep up with the files
		layOver(t, filepath.Join(root, filepath.FromSlash(m.file)), m.old, m.new)
	}
	if !*mutate {
		t.Skip("runs other tests for minutes: see -mutate")
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, "'", ""), func(t *testing.T) {
			overlay := layOver(t, filepath.Join(root, filepath.FromSlash(m.file)), m.old, m.new)
			for _, s := range m.suites {
				if found := failing(t, root, overlay, s); found != "" {
					t.Logf("caught by %s %s", s.pkg, found)
					return
				}
				t.Logf("not caught by %s %s", s.pkg, s.run)
			}
			t.Error("not caught")
		})
	}
}

// layOver writes the changed file and the overlay that puts it in place of the other.
func layOver(t *testing.T, file, old, changed string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), old); n != 1 {
		t.Fatalf("%s has the text to replace %d times, want once:\n%s", file, n, old)
	}
	dir := t.TempDir()
	mutant := filepath.Join(dir, "mutant.go")
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(text), old, changed, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]map[string]string{"Replace": {file: mutant}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

var fails = regexp.MustCompile(`(?m)^--- FAIL: (\S+)|^panic: (test timed out)`)

// failing returns the name of a test of the suite that fails, or "".
func failing(t *testing.T, root, overlay string, s suite) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout", "120s", "-overlay", overlay, "-run", s.run, s.pkg)
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
