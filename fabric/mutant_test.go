package fabric_test

import (
	"flag"
	"testing"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Deliberately broken variants of the links and of mail, which the tests must catch:
//
//	go test ./fabric -run Mutants -mutate -v -timeout 30m
var mutate = flag.Bool("mutate", false, "run the broken variants of TestMutants")

var (
	windows = natstest.Suite{Pkg: "./internal/window", Run: "Test"}
	faults  = natstest.Suite{Pkg: "./fabric", Run: "TestReliableFaults"}
	links   = natstest.Suite{Pkg: "./fabric", Run: "Reliable|BackPressure|Large|Stream|Parts|Drain"}
)

var mutants = []natstest.Mutant{
	{
		Name: "no dedup", File: "internal/window/window.go",
		Old: "	case seq <= r.cum:\n		return Repeated\n", New: "	case seq <= r.cum && seq == 0:\n		return Repeated\n",
		Suites: []natstest.Suite{windows, faults},
	},
	{
		Name: "a gap is accepted", File: "internal/window/window.go",
		Old: "	case seq > r.cum+1:\n", New: "	case seq > r.cum+1 && seq > r.told.Seq:\n",
		Suites: []natstest.Suite{windows, faults},
	},
	{
		Name: "acknowledged before it is accepted", File: "internal/window/window.go",
		Old: "	st := State{Cum: r.cum,", New: "	st := State{Cum: max(r.cum, r.seen),",
		Suites: []natstest.Suite{windows, faults},
	},
	{
		Name: "nothing is sent again", File: "internal/window/window.go",
		Old: "	return progress, again\n", New: "	return progress, false\n",
		Suites: []natstest.Suite{windows, faults},
	},
	{
		Name: "only the answer to the newest probe counts", File: "internal/window/window.go",
		Old: "		again = s.probes[0].number == st.Probe &&", New: "		again = s.probes[0].number == s.probe &&",
		Suites: []natstest.Suite{windows},
	},
	{
		Name: "answers to probes before the last sending count", File: "internal/window/window.go",
		Old: "		s.probes = nil //", New: "		//",
		Suites: []natstest.Suite{windows},
	},
	{
		Name: "the window is ignored", File: "internal/window/window.go",
		Old: "	return s.next <= s.grant.Seq && s.sent+size <= s.grant.Bytes\n", New: "	return s.next > 0\n",
		Suites: []natstest.Suite{windows, links},
	},
	{
		Name: "who waits for room does not ask for it", File: "fabric/outlink.go",
		Old: "	return l.win.Idle() && l.waiting == 0\n", New: "	return l.win.Idle()\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Blocked"}},
	},
	{
		Name: "a message in parts is forgotten with its first", File: "fabric/outlink.go",
		Old: "		if p.last != 0 {\n", New: "		if p.last != 0 && len(l.kept) == 0 {\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "LargeReported"}},
	},
	{
		Name: "what was not answered was not received", File: "fabric/outlink.go",
		Old: "	return l.heard || l.refused < l.asked\n", New: "	return l.heard\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Perhaps"}},
	},
	{
		Name: "a credit leak", File: "internal/window/window.go",
		Old: "	r.consumed.Bytes += size\n", New: "	r.consumed.Bytes += size / 2\n",
		Suites: []natstest.Suite{windows, links},
	},
	{
		Name: "what was refused never comes", File: "internal/window/window.go",
		Old: "	r.again = false\n	return st\n", New: "	st.Hold, r.again = true, false\n	return st\n",
		Suites: []natstest.Suite{windows, links},
	},
	{
		Name: "nobody asks", File: "fabric/links.go",
		Old: "		q.wait = min(2*q.wait, lastProbe)\n		q.due = now.Add(q.wait)\n		l.probe()\n",
		New: "		q.wait = min(2*q.wait, lastProbe)\n		q.due = now.Add(q.wait)\n", Suites: []natstest.Suite{faults, links},
	},
	{
		Name: "a link is known by its sender alone", File: "fabric/inlink.go",
		Old:    "	if t.id != 1 || !c.links.admit(s.from, false) {\n",
		New:    "	for _, other := range c.links.in {\n		if other.from == s.from {\n			c.links.in[in.name] = other\n			return other\n		}\n	}\n	if t.id != 1 || !c.links.admit(s.from, false) {\n",
		Suites: []natstest.Suite{links, {Pkg: "./fabric", Run: "Restarted"}},
	},
	{
		Name: "who sends parts is told when all came", File: "fabric/inlink.go",
		Old: "	if in.win.Consume(1, it.size()) {\n		in.due = true\n	}\n	if p == nil {\n", New: "	in.win.Consume(1, it.size())\n	if p == nil {\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "WhenTold"}},
	},
	{
		Name: "a state takes the place of one that was not said", File: "fabric/inlink.go",
		Old: "w.state.Again || again && !w.state.Hold\n", New: "w.state.Again && !again\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "AgainIsSaid"}},
	},
	{
		Name: "frames of one life speak for another", File: "fabric/receive.go",
		Old: "	s.framed = sourceOf(t.nonce, s.framed)\n", New: "	s.framed = sourceOf(t.nonce, s.framed)\n	s.source = s.framed\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "EpochOfEach"}},
	},
	{
		Name: "parts of two messages are mixed", File: "fabric/large.go",
		Old: "	in.dropPartial() // its sender gave up\n	p :=", New: "	if in.partial != nil {\n		return nil\n	}\n	p :=",
		Suites: []natstest.Suite{links},
	},
	{
		Name: "memory that was given back is sent", File: "fabric/large.go",
		Old: "			p.data = p.buf\n", New: "",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "LargeIsTheCallers"}},
	},
	{
		Name: "a part by itself is its message's last", File: "fabric/inlink.go",
		Old: "it := item{kind: kindPart, more: true,", New: "it := item{kind: kindPart, more: t.id%2 == 0,",
		Suites: []natstest.Suite{links},
	},
	{
		Name: "parts that were dropped are acknowledged", File: "fabric/pastlinks.go",
		Old: "		in.win = nil\n", New: "", Suites: []natstest.Suite{links},
	},
	{
		Name: "nobody looks after what does not continue", File: "fabric/links.go",
		Old: "	timer := time.NewTimer(expireEvery)\n", New: "	timer := time.NewTimer(time.Hour)\n", Suites: []natstest.Suite{links},
	},
	{
		Name: "a link that is over begins again", File: "fabric/pastlinks.go",
		Old: "	return s.past.named(name)\n", New: "	return nil\n", Suites: []natstest.Suite{links},
	},
	{
		Name: "a stream that was cut short looks complete", File: "fabric/stream.go",
		Old: "	if s.err == nil && s.ctx.Err() != nil {\n", New: "	if s.err == nil && s.ctx == nil {\n", Suites: []natstest.Suite{links},
	},
	{
		Name: "a writer that has gone is waited for", File: "fabric/inlink.go",
		Old: "	case in.isStream && idle > stallLimit:", New: "	case in.isStream && idle > 100*stallLimit:", Suites: []natstest.Suite{links},
	},
	{
		Name: "a flush waits for what was lost with its connection", File: "fabric/links.go",
		Old: "	c.flushes.fail(c.cfg.pid, \"\", errBroken)\n", New: "",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "FlushBroken"}},
	},
	{
		Name: "no memory is given back", File: "fabric/inlink.go",
		Old: "	if m.large {\n		in.c.memory.free(int64(len(m.Data)))\n", New: "	if m.large {\n", Suites: []natstest.Suite{links},
	},
	{
		Name: "a new process continues the old one's link", File: "fabric/inlink.go",
		Old: "	if t.id != 1 || !c.links.admit", New: "	if !c.links.admit", Suites: []natstest.Suite{links, {Pkg: "./fabric", Run: "Restarted"}},
	},
	{
		Name: "order is lost between direct and queued", File: "fabric/batcher.go",
		Old: "	if p.d.plain != kindBroadcast {\n		return p.casts == b.casts\n", New: "	if p.d.plain != kindBroadcast {\n		return true\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Order"}},
	},
	{
		Name: "order is lost between sends and requests", File: "fabric/parcel.go",
		Old: "p.o.kind.awaits() == o.kind.awaits() &&", New: "true &&",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Gathered"}},
	},
	{
		Name: "a 503 ends the first of several requests only", File: "fabric/batcher.go",
		Old: "		b.c.calls.gather(o.secret, p.o.secret)\n", New: "",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Gathered"}},
	},
	{
		Name: "answers need no secret of their own", File: "fabric/request.go",
		Old: "id: it.id, secret: it.secret}, it.data)", New: "id: it.id, secret: t.secret}, it.data)",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Gathered"}},
	},
	{
		Name: "an id is looked for in one generation", File: "fabric/letter.go",
		Old: "	return !known\n", New: "	return !known || n == 0\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Seen"}},
	},
	{
		Name: "the outbox keeps what was stored by a repetition", File: "fabric/mail.go",
		Old: "	p.abandon(s)\n	if err == nil {\n", New: "	if err == nil {\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Outbox"}},
	},
	{
		Name: "a posting is used again while the outbox has it", File: "fabric/posting.go",
		Old: " || !s.handed.Load() {\n", New: " {\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Posting"}},
	},
	{
		Name: "a posting is used again while it may be answered", File: "fabric/posting.go",
		Old: "	if s.dead || s.tries > 1 ||", New: "	if s.dead ||",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "Posting"}},
	},
	{
		Name: "a late acknowledgement counts", File: "internal/mail/errors.go",
		Old: "p.Domain == q.Domain && p.Seq > q.Seq", New: "p.Domain == q.Domain && p.Seq > 0",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "MailLateAnswers"}},
	},
	{
		Name: "an acknowledgement of another domain counts", File: "internal/mail/errors.go",
		Old: "p.Domain == q.Domain && p.Seq > q.Seq", New: "p.Seq > q.Seq",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "MailLateAnswers"}},
	},
	{
		Name: "what was not published is acknowledged", File: "fabric/mail.go",
		Old: " || !s.begun.Load() && s.tries == 1) {\n", New: ") {\n",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "PostingAnswered"}},
	},
	{
		Name: "every refusal is definite", File: "fabric/mail.go",
		Old: "s.lost == 0 || mail.Definite(err)", New: "s.lost == 0 || err != nil",
		Suites: []natstest.Suite{{Pkg: "./fabric", Run: "MailRefusedAgain"}},
	},
}

func TestMutants(t *testing.T) { natstest.Mutants(t, "..", *mutate, mutants) }
