package fabric

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func TestParseTag(t *testing.T) {
	for _, s := range []string{
		"s012345.1", "bABCDEF.LygHa16AHYF", "qabcdef.10-klmnopqrst", "sabcdefT1.zZ9", "y000000.zzzzzzzzzz",
		"+012345.7-0123456789-4gfFC4", "m012345.1-1:10_3",
	} {
		tg, ok := parseTag(s)
		if got := string(tg.append(nil)); !ok || got != s {
			t.Errorf("parseTag(%q) = %v, %v, written %q", s, tg, ok, got)
		}
	}
	for _, s := range []string{
		"", "s", "s012345", "s012345.", "s012345.0", "s012345.01", "s012345.-1", "s012345.+1",
		"s012345.LygHa16AHYG", "s012345.zzzzzzzzzzz", "s012345.100000000000", "s012345.1_000", "s01234.1", "s01-345.1", "2s012345.1",
		"x012345.1", "s012345.1-0123456789", "q012345.1", "q012345.1-", "q012345.1-012345678",
		"q012345.1-012345678.", "q012345.-0123456789", "s012345.1.1", "s012345x1",
		"m012345.1- ", "m012345.1-1.2", "m012345.1-1:*", "m012345.1",
		"+012345.7", "+012345.7-0123456789", "+012345.7-0123456789-0",
	} {
		if tg, ok := parseTag(s); ok {
			t.Errorf("parseTag(%q) = %v, want refused", s, tg)
		}
	}
}

func TestParseID(t *testing.T) {
	ids := []uint64{1, 9, 10, 35, 36, 61, 62, 63, math.MaxUint64/62 - 1, math.MaxUint64 / 62, math.MaxUint64 - 1, math.MaxUint64}
	for n := uint64(62); n < math.MaxUint64/62; n *= 62 {
		ids = append(ids, n-1, n, n+1)
	}
	last := ""
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		s := string(appendID(nil, id))
		if got, ok := parseID(s); !ok || got != id || len(s) < len(last) || len(s) == len(last) && s <= last {
			t.Errorf("%d is written %q after %q, and read %d, %v", id, s, last, got, ok)
		}
		last = s
	}
}

func TestRandom(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		s := random(secretLen)
		if len(s) != secretLen || !isBase62(s) || seen[s] {
			t.Fatalf("random = %q", s)
		}
		seen[s] = true
	}
}

// FuzzTag: a tag that is accepted is the only way to write what it says, and is
// two tokens.
func FuzzTag(f *testing.F) {
	for _, s := range []string{"s012345.1", "+012345.7-0123456789-9", "m012345.1-1:10_3", "qabcdef.10-klmnopqrst", "s012345.LygHa16AHYG", "", "s", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tg, ok := parseTag(s)
		if !ok {
			return
		}
		if got := string(tg.append(nil)); got != s {
			t.Errorf("parseTag(%q) is written %q", s, got)
		}
		if strings.Count(s, ".") != 1 || strings.ContainsAny(s, "*> \r\n\t") || tg.id == 0 || tg.kind.secret() != (tg.secret != "") {
			t.Errorf("parseTag(%q) accepted %+v", s, tg)
		}
	})
}

// FuzzReceive: whatever subject, reply subject and header a message has, decoding
// it does not panic; an accepted one is From the subject's last token, and an
// answer to it goes to that process, in our name, or to an inbox address.
func FuzzReceive(f *testing.F) {
	const p = "fab.c1.test."
	f.Add(p+"u.b.a", p+"r.a.b.q012345.1-0123456789", "", "")
	f.Add(p+"u.b.a", p+"r.a.b.s012345.1", "K", "v")
	f.Add(p+"b.a", p+"r.a._.b012345.7", "Nats-Stream", "S")
	f.Add(p+"u.b.ext", "_INBOX.x.y", "", "")
	f.Add(p+"g.news.a", p+"r.a._.b012345.7", "", "")
	f.Add(p+"g.news.a", p+"r.a._.q012345.1-0123456789", "", "")
	f.Add(p+"q.mail.a", p+"r.a._.q012345.1-0123456789", "", "")
	f.Add(p+"q.mail.ext", "_INBOX.x.y", "", "")
	f.Add(p+"q.mail.ext", "", "", "")
	f.Add(p+"g.news.ext", "", "", "")
	f.Add(p+"u.b.ext", "$JS.API.STREAM.DELETE.S", "Status", "503")
	f.Add(p+"r.b.a.a012345.1-0123456789", "", "", "")
	f.Add("", "", "", "")
	f.Fuzz(func(t *testing.T, subject, reply, key, value string) {
		c := newTestCourier()
		d := decoder{c: c}
		m := &nats.Msg{Subject: subject, Reply: reply}
		if key != "" {
			m.Header = nats.Header{key: {value}}
		}
		c.onReply(m)
		first := d.decode(nil, m)
		again := d.decode(nil, m) // by what was remembered
		if len(first) != len(again) || len(first) == 1 && (*first[0]).ID != (*again[0]).ID {
			t.Fatalf("decoded %v, then %v", first, again)
		}
		if len(first) == 0 {
			return
		}
		got := first[0]
		if !strings.HasSuffix(subject, "."+string(got.From)) || isForeign(m.Header) {
			t.Errorf("accepted From %q on %q", got.From, subject)
		}
		switch {
		case got.From == External:
			if got.IsRequest() && (got.asked().inbox != reply || !strings.HasPrefix(reply, "_INBOX.")) {
				t.Errorf("answer to %q", got.asked().inbox)
			}
		case got.asked() != nil:
			to := "b"
			if !strings.HasPrefix(subject, p+"u.") {
				to = "_"
			}
			if want := p + "r." + string(got.From) + "." + to + "." + string(rune(got.asked().kind)) + got.asked().nonce + got.Type + got.asked().end(); want != reply && !strings.Contains(reply, ".g"+got.asked().nonce+".") {
				t.Errorf("reply %q is rebuilt as %q", reply, want)
			}
		}
	})
}

// FuzzSubject: what the parsers accept is what the builders build.
func FuzzSubject(f *testing.F) {
	f.Add("fab.c1.test.u.b.a")
	f.Add("fab.c1.test.r.b._.s012345.1")
	f.Add("fab.c1.test.y.hb.a")
	f.Add("fab.c1.test.g.news.a")
	f.Add("fab.c1.test.q.mail.a")
	f.Add("fab.c1.test.q.mail.ext")
	f.Add("fab.c1.test.b.*")
	f.Fuzz(func(t *testing.T, s string) {
		b := newSubjects("c1", "test", "b")
		if from, ok := b.parsePeer(s); ok && newSubjects("c1", "test", from).peer("b") != s {
			t.Errorf("parsePeer(%q) = %q", s, from)
		}
		if from, ok := b.parseCast(s); ok && newSubjects("c1", "test", from).everyone() != s {
			t.Errorf("parseCast(%q) = %q", s, from)
		}
		if name, from, ok := b.parseTopic(s); ok && newSubjects("c1", "test", from).topic(name) != s {
			t.Errorf("parseTopic(%q) = %q, %q", s, name, from)
		}
		if name, from, ok := b.parseService(s); ok && newSubjects("c1", "test", from).service(name) != s {
			t.Errorf("parseService(%q) = %q, %q", s, name, from)
		}
		switch to, service, ok := b.target(s); {
		case !ok:
		case to == nobody && b.service(service) != s, to == Everyone && !strings.HasSuffix(s, ".b"),
			to != nobody && to != Everyone && b.peer(to) != s:
			t.Errorf("target(%q) = %q, %q", s, to, service)
		}
		if from, ok := b.parseSignal("hb", s); ok && newSubjects("c1", "test", from).signal("hb") != s {
			t.Errorf("parseSignal(%q) = %q", s, from)
		}
		if from, rest, ok := b.parseReply(s); ok && b.reply("b", from)+rest != s {
			t.Errorf("parseReply(%q) = %q, %q", s, from, rest)
		}
		if to, ok := b.peerOf(s); ok && b.peer(to) != s {
			t.Errorf("peerOf(%q) = %q", s, to)
		}
		if isInboxAddress(s) && (strings.ContainsAny(s, " \r\n\t*>") || strings.Contains(s, "..") || strings.HasSuffix(s, ".")) {
			t.Errorf("isInboxAddress(%q)", s)
		}
	})
}
