package lease_test

import (
	"flag"
	"testing"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Deliberately broken variants of the protocol, which the tests must catch:
//
//	go test ./internal/lease -run Mutants -mutate -v -timeout 60m
//	go test ./internal/lease -run Mutants/no_death_guard -mutate -v
//
// Each is run against the quickest tests that must notice it; where they draw lots,
// against others after that.
var mutate = flag.Bool("mutate", false, "run the broken variants of TestMutants")

func suite(pkg, run string) natstest.Suite { return natstest.Suite{Pkg: "./" + pkg, Run: run} }

var (
	sims    = suite("internal/lease", "TestSimulation")
	leases  = suite("internal/lease", "Test([^S]|S[^i])")
	churn   = suite("election", "TestChurn")
	elects  = suite("election", "Test")
	buckets = suite("internal/kv", "Test")
	rosters = suite("internal/roster", "Test")
	members = suite("fabric", "Test")
)

func mutant(name, file, old, changed string, suites ...natstest.Suite) natstest.Mutant {
	return natstest.Mutant{Name: name, File: file, Old: old, New: changed, Suites: suites}
}

var mutants = []natstest.Mutant{
	mutant("deadline from ack", "internal/lease/renew.go",
		"			s.acked(failed)\n", "			s.acked(failed)\n			sent = s.cfg.Clock.Now()\n", sims, leases, churn),
	mutant("no deadline", "internal/lease/timing.go",
		"return lease - margin(lease)", "return 2 * lease", sims, churn),
	mutant("a grant outlives its deadline", "internal/lease/hold.go",
		"	return !h.ended.Load() && h.left(grace) > 0\n", "	return h.cause == nil || h.cause == ErrLost\n", sims, leases, churn),
	mutant("no renewal guard", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.Key, "s.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	} else {
		w.GuardKey = ""
	}
	_ =`, sims, leases, churn),
	mutant("no death guard", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.GuardKey, "s.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	} else {
		w.GuardKey = ""
	}
	_ =`, sims, leases, churn),
	mutant("no guard of a claim", "internal/kv/bucket.go",
		`	msg.Header["Nats-Expected-Last-Subject-Sequence"] =`, `	if !strings.HasPrefix(w.Key, "c.e.") {
		msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	}
	_ =`, sims, churn),
	mutant("challenger's own lease", "internal/lease/watcher.go",
		"		lease = r.Lease()\n", "		lease = w.s.cfg.Lease\n", sims, churn),
	mutant("impatient challenger", "internal/lease/timing.go",
		"	return lease + time.Duration(float64(lease)*drift) + slack\n", "	return lease / 2\n", sims, churn),
	mutant("an unknown death counts", "internal/lease/watcher.go",
		"	case err == nil:\n		return true, 0\n", "	case err == nil, errors.Is(err, kv.ErrUnknown):\n		return true, 0\n", sims, leases, churn),
	mutant("a refused death counts", "internal/lease/watcher.go",
		"	case err == nil:\n		return true, 0\n", "	case err == nil, errors.Is(err, kv.ErrRefused):\n		return true, 0\n", sims, leases, churn),
	mutant("the feed decides", "internal/lease/watcher.go",
		"		if told { //", "		if told {\n			return nil\n		}\n		if told { //", suite("internal/lease", "Forged"), sims),
	mutant("no re-reading", "internal/kv/watch.go",
		"time.NewTimer(Reread*4/5 + rand.N(Reread*2/5))", "time.NewTimer(1000*time.Hour + rand.N(Reread))", buckets, suite("internal/lease", "Deaf")),
	mutant("what changed is not read", "internal/kv/watch.go",
		"w.since(ctx, since)", "w.since(ctx, l.last)", buckets),
	mutant("the silent are not read", "internal/kv/watch.go",
		"			return k.Rev > l.last || k.Seen.Before(began.Add(-max(Reread, w.b.Longest()/2)))\n", "			return k.Rev > l.last\n", buckets),
	mutant("no FirstSeq", "internal/kv/open.go",
		"max(uint64(now.UnixMicro()), highest+1)", "min(highest, 0)", buckets, sims, churn),
	mutant("a new bucket is open at once", "internal/kv/open.go",
		"	wait := b.Longest()\n", "	wait := time.Duration(0)\n", buckets, sims, churn),
	mutant("who opens states its own lease", "internal/kv/open.go",
		"	b.longest = max(b.longest, lease)\n", "", buckets),
	mutant("a member leaves a newcomer its short lease", "internal/kv/open.go",
		"		if !newcomer && stated < wait && !b.cfg.NoOpen {\n", "		if newcomer && false {\n", buckets),
	mutant("nobody asks who is there", "internal/kv/open.go",
		"	ask := made || newcomer\n", "	ask := made && !newcomer\n", suite("election", "Bucket"), elects),
	mutant("guard 0 counts in a new bucket", "internal/kv/settle.go",
		"	if rev != 0 {\n		return nil\n	}\n", "	if rev >= 0 {\n		return nil\n	}\n", buckets, sims, churn),
	mutant("a claim in doubt is forgotten", "internal/lease/claim.go",
		"			c.giveUp(d) // and the turn with it\n", "			_ = d\n			<-c.turn\n", suite("internal/lease", "Unacknowledged"), leases, sims),
	mutant("a lost ack is a refusal", "internal/kv/settle.go",
		"			doubt = true\n", "			return 0, ErrRefused\n", buckets, sims, churn),
	mutant("a lost term is kept", "internal/lease/grant.go",
		"			g.Release(s.life) //", "			_ = g.err //", suite("internal/lease", "Grace"), sims),
	mutant("release before the work ends", "election/election.go",
		"	err = f(term, t)\n", "	defer context.AfterFunc(term, func() { t.Resign(context.WithoutCancel(ctx)) })()\n	err = f(term, t)\n", suite("election", "Lead|Leave"), elects),
	mutant("the view's token does not count", "internal/roster/coordinate.go",
		"v.Token > token {", "v.Token > token && false {", rosters, members),
	mutant("an old session ends a young incarnation", "internal/lease/watcher.go",
		"	if e.Seen.Before(w.born) {\n", "	if false {\n", suite("internal/lease", "Young"), sims),
	mutant("a grace used up stays so", "internal/lease/hold.go",
		"	delete(h.fuses, grace) //", "	//", suite("internal/lease", "Fuse|Grace"), churn),
	mutant("a challenge during an outage", "internal/lease/renew.go",
		"	if s.outageOf > outage(v.lease) {\n", "	if false {\n", suite("fabric", "Outage")),
	mutant("absence is vacancy", "internal/lease/watcher.go",
		"	lease := w.s.b.Longest()\n", "	lease := w.s.b.Longest() / 4\n", sims, churn),
	mutant("a forged lease counts", "internal/lease/watcher.go",
		"	if guard != 0 && guard == w.told {", "	if guard == 0 && guard == w.told {", suite("internal/lease", "Forged"), sims),
	mutant("a forged release counts", "internal/lease/waiter.go",
		"	n, err := w.c.s.b.Get(ctx, w.c.key)\n", "	n, err := entries[0], error(nil)\n", suite("internal/lease", "Forged"), sims),
	mutant("a witness ends whoever has the PID now", "internal/lease/witness.go",
		"	if r.Inc != inc {\n", "	if r.Inc < inc {\n", suite("internal/lease", "Witness")),
	mutant("a session that was removed is a guard", "internal/lease/witness.go",
		"		return 0, err // absent or foreign\n	}\n", "		if e.Value != nil {\n			return 0, err\n		}\n		r.Inc = inc\n	}\n", suite("internal/lease", "Witness")),
	mutant("a refused release is one", "internal/lease/leave.go",
		"readErr == nil && e.Rev > rev ||", "readErr == nil || e.Rev > rev ||", suite("internal/lease", "Deposed")),
	mutant("Leave ends a grace", "internal/lease/grant.go",
		"time.AfterFunc(p.Grace, g.exit)", "g.exit()", suite("election", "LeaveWaits")),
	mutant("who was away does not look", "internal/kv/rollback.go",
		"b.suspect || b.looked != connects, b.rolled", "b.suspect, b.rolled", suite("tests", "RollbackBehind")),
	mutant("a read-back that finds nothing is an outcome", "internal/kv/settle.go",
		"readErr == nil && e.Rev > rev {", "readErr == nil {", suite("internal/lease", "Settle")),
	mutant("two actors on one claim", "internal/lease/claim.go",
		"turn: make(chan struct{}, 1)", "turn: make(chan struct{}, 2)", suite("election", "Queue")),
	mutant("a guard of another's key", "internal/kv/bucket.go",
		`+ w.GuardKey}`, `+ strings.Replace(w.GuardKey, "s.", "s.*.", 1)}`, suite("internal/lease", "TestPIDOf|TestClaimPasses")),
	mutant("priority usurps", "internal/lease/claim.go",
		"		free := !r.Held()\n", "		free := !r.Held() || p.Priority > r.Priority\n", sims, churn),
	mutant("busy is a loss", "internal/kv/errors.go",
		"		return target == ErrBusy\n", "		return target == ErrRefused\n", suite("internal/lease", "Settle")),
	mutant("the server forgets the living", "internal/lease/timing.go",
		"return max(time.Minute, 10*lease)", "return lease", suite("internal/lease", "TestTimes")),
	mutant("a TTL is truncated", "internal/kv/bucket.go",
		"int64((w.TTL+time.Second-1)/time.Second)", "int64(w.TTL/time.Second)", buckets),
	mutant("a token is a random number", "internal/lease/claim.go",
		"	g := newGrant(c, hold, p, token, r)\n", "	g := newGrant(c, hold, p, uint64(r.Nonce[len(r.Nonce)-1])<<32+token%7, r)\n", sims, churn),
	mutant("leaves before its work has stopped", "internal/lease/leave.go",
		"	err := s.work.wait(ctx)\n", "	err := ctx.Err()\n", suite("election", "Leave"), elects),
	mutant("fenced after the record is sent", "internal/lease/leave.go",
		"	s.fail(ErrLeft) // before", "	if err == nil {\n		s.giveBack(ctx)\n	}\n	s.fail(ErrLeft) // before", suite("internal/lease", "LeaveEnds")),
	mutant("what is kept is not guarded", "internal/lease/ledger.go",
		"GuardKey: g.c.key, GuardRev: g.book.rev}", "GuardKey: KeyPID(g.record.PID), GuardRev: g.record.Inc}", sims, elects),
	mutant("a resumed lease keeps a lost claim", "internal/lease/grant.go", `		case st.Hold != nil && st.Hold.Incarnation == inc:
			g.hold.Store(st.Hold)
		case st.Hold != nil:
			g.cancel(fmt.Errorf("%w: incarnation %d was ended", ErrLost, inc))
		case st.Lapsed != inc:
			g.cancel(st.Err)
`, `		case st.Hold != nil:
			g.hold.Store(st.Hold)
		case false:
			g.cancel(fmt.Errorf("%w: incarnation %d was ended", ErrLost, inc))
`, suite("election", "HoldOnSuspend"), sims, churn),
}

func TestMutants(t *testing.T) { natstest.Mutants(t, "../..", *mutate, mutants) }
