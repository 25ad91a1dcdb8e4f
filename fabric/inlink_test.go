package fabric

import (
	"fmt"
	"hash/crc32"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/window"
)

// TestReliableLives: however often a process begins anew under its PID, it is heard, and
// its lives before take nothing away from its window. What they sent may come again, late.
func TestReliableLives(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true}, reads: make(map[PID]int)}
	b := startNode(t, connect(t, s), "b", v, nil)
	ctx := deadline(t)
	raw := connect(t, s)
	var mu sync.Mutex // guards old
	var old []*nats.Msg
	sub, err := raw.Subscribe(b.courier.subj.peerAll(), func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		old = append(old, m)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	var a *Node
	for i := range maxLinksPerPeer + 6 {
		a = startNode(t, connect(t, s), "a", v, nil)
		if err := reliable(ctx, a, "b", []byte("1")); err != nil {
			t.Fatal(err)
		}
		if err := a.Flush(ctx); err != nil {
			t.Fatalf("life %d: %v", i, err)
		}
		numbered(t, ctx, b, 1)
		if i < maxLinksPerPeer+5 {
			a.courier.close()
		}
	}
	d, err := a.courier.dest("b")
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.courier.link(d)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	room := l.win.Room(maxWindow / 2)
	l.mu.Unlock()
	if !room {
		t.Error("the window is small")
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, m := range old {
		if err := raw.PublishMsg(&nats.Msg{Subject: m.Subject, Reply: m.Reply, Header: m.Header, Data: m.Data}); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 10; i++ {
		if err := reliable(ctx, a, "b", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Flush(ctx); err != nil {
		t.Error(err)
	}
	numbered(t, ctx, b, 10)
}

// TestReliableWaiting: a life whose messages still wait makes no room, so what waits of
// one PID is bounded.
func TestReliableWaiting(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	ctx := deadline(t)
	for i := range maxLinksPerPeer + 1 {
		a := startNode(t, connect(t, s), "a", nil, nil)
		if err := reliable(ctx, a, "b", []byte("1")); err != nil {
			t.Fatal(err)
		}
		if err := a.Flush(ctx); (err != nil) != (i == maxLinksPerPeer) {
			t.Errorf("life %d: %v", i, err)
		}
		a.courier.close()
	}
	for range maxLinksPerPeer {
		numbered(t, ctx, b, 1)
	}
	a := startNode(t, connect(t, s), "a", nil, nil)
	if err := reliable(ctx, a, "b", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// TestReliableBesideStreams: as many streams as there may be leave room for messages.
func TestReliableBesideStreams(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	for range maxLinksPerPeer {
		out, err := a.OpenStream(ctx, "b", "", -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.AcceptStream(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := reliable(ctx, a, "b", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	numbered(t, ctx, b, 1)
}

// TestLinksExpire: of the links of a PID that is in the view, the one that was used last
// is kept while it has the incarnation that it had. The others are forgotten.
func TestLinksExpire(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true}, lives: map[PID]uint64{"a": 1}, reads: make(map[PID]int)}
	b := startNode(t, connect(t, s), "b", v, func(c *courierConfig) {
		c.lifeOf = func(pid PID) uint64 {
			all, _ := v.members()
			return all[pid]
		}
	})
	ctx := deadline(t)
	for range 3 {
		a := startNode(t, connect(t, s), "a", v, nil)
		if err := reliable(ctx, a, "b", []byte("1")); err != nil {
			t.Fatal(err)
		}
		numbered(t, ctx, b, 1)
	}
	now := time.Now()
	idle := func() int {
		l := &b.courier.links
		for end := now.Add(linkIdle + 2*expireEvery); now.Before(end); now = now.Add(expireEvery) {
			l.expire(now)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.in)
	}
	if n := idle(); n != 1 {
		t.Errorf("%d links are kept, want the last", n)
	}
	if n := idle(); n != 1 {
		t.Errorf("%d links are kept after twice the time, want the last", n)
	}
	v.change(func() { v.lives["a"] = 2 })
	if n := idle(); n != 0 {
		t.Errorf("%d links are kept of a life that is over", n)
	}
}

// TestTaken: a link knows of each message, whether its sender awaits something or not, that it
// waits, and when it was taken; what the message says of its sender is the same before and after.
func TestTaken(t *testing.T) {
	in := partLink(1000)
	for _, k := range []kind{kindSend, kindAccept, kindRequest} {
		in.win = window.NewReceiver(firstGrant)
		batch, _ := in.take(nil, 1, &item{kind: k, id: 7, secret: "0123456789", data: []byte("x")})
		m := batch[0]
		asked := m.asked()
		if m.link() != in || m.Epoch() != "012345" || (asked != nil) != k.awaits() || in.win.Waiting() != 1 {
			t.Errorf("%c waits: link %p of %p, epoch %s, asked %v", k, m.link(), in, m.Epoch(), asked)
		}
		in.c.inbox.put(batch)
		if got, err := in.c.inbox.take(t.Context(), nil, 0); got != m || err != nil {
			t.Fatal(got, err)
		}
		if m.Epoch() != "012345" || m.asked() != asked || in.win.Waiting() != 0 {
			t.Errorf("%c taken: epoch %s, asked %v of %v, %d wait", k, m.Epoch(), m.asked(), asked, in.win.Waiting())
		}
		if next := in.message(&item{kind: k}); next.link() != nil {
			t.Errorf("%c: the next is on the link before it is accepted", k)
		}
	}
}

// TestBarePart: a part by itself is one in a frame, checked like that.
func TestBarePart(t *testing.T) {
	in := partLink(1000)
	data := []byte("abcdef")
	sum := func(n int) uint64 { return 1 + uint64(crc32.Checksum(data[:n], castagnoli)) }
	in.take(nil, 1, &item{kind: kindSend, id: 1, more: true, total: 6, hasCRC: true, crc: uint32(sum(2) - 1), data: data[:2]})
	for _, c := range []struct {
		seq, sum uint64
		data     []byte
		next     uint64
	}{
		{3, sum(4), data[2:4], 1},         // before its turn
		{2, sum(5), data[2:4], 1},         // damaged
		{2, sum(4) + 1<<32, data[2:4], 1}, // no checksum
		{2, 0, data[2:4], 1},              // none either
		{2, sum(4), data[2:4], 2},         //
		{2, sum(4), data[2:4], 2},         // again
		{3, sum(6), data[4:6], 3},         // all are here, but that is not said
	} {
		if batch := in.bare(nil, tag{kind: kindPart, id: c.seq, seq: c.sum}, c.data); len(batch) > 0 || in.win.Cum() != c.next {
			t.Errorf("part %d, sum %x: %d messages, %d parts are accepted, want %d", c.seq, c.sum, len(batch), in.win.Cum(), c.next)
		}
	}
	batch, _ := in.take(nil, 4, &item{kind: kindPart, hasCRC: true, crc: uint32(sum(6) - 1)})
	if len(batch) != 1 || string(batch[0].Data) != "abcdef" {
		t.Errorf("the message is %v", batch)
	}
}

// TestWhenTold: the sender of a message in parts is told what it may wait for: that a quarter of
// its window is free, that all came, and what is wrong; not each part, if it is a small one.
func TestWhenTold(t *testing.T) {
	const limit, size = 800, 100 // a quarter is two parts
	data := make([]byte, size)
	crc := func(parts int) uint32 { return crc32.Checksum(make([]byte, parts*size), castagnoli) }
	part := func(n int) *item {
		it := &item{kind: kindPart, more: n < 5, hasCRC: true, crc: crc(n), data: data}
		if n == 1 {
			it.kind, it.id, it.total = kindSend, 1, 5*size
		}
		return it
	}
	wrong := part(2)
	wrong.crc++
	in := partLink(limit)
	in.win = window.NewReceiver(window.Grant{Seq: 100, Bytes: limit})
	for _, tt := range []struct {
		name string
		seq  uint64
		it   *item
		due  bool
	}{
		{"the first part", 1, part(1), false},
		{"another after one that is lost", 3, part(3), true},
		{"a damaged part", 2, wrong, true},
		{"less than a quarter since", 2, part(2), false},
		{"a quarter since", 3, part(3), true},
		{"one that came before", 3, part(3), true},
		{"less than a quarter again", 4, part(4), false},
		{"the last part", 5, part(5), true},
		{"a message", 6, &item{kind: kindSend, id: 2, data: data}, true},
		{"one beyond the window", 7, &item{kind: kindSend, id: 3, data: make([]byte, limit+1)}, true},
		{"no memory", 7, &item{kind: kindSend, id: 3, more: true, hasCRC: true, total: limit, data: data, crc: crc(1)}, true},
	} {
		in.due = false
		in.take(nil, tt.seq, tt.it)
		if in.due != tt.due {
			t.Errorf("%s: told %v", tt.name, in.due)
		}
		if in.due {
			in.tell()
		}
	}
}

// TestAgainIsSaidOnce: that what was refused may come again is said, however many states are noted
// before, and once; not if it is refused anew.
func TestAgainIsSaidOnce(t *testing.T) {
	in := partLink(1000)
	said := func() (again, hold bool) {
		k, data := in.word.say()
		st, ok := parseState(data)
		if k != kindState || !ok {
			t.Fatalf("said %c %x", k, data)
		}
		return st.Again, st.Hold
	}
	in.win.Refuse()
	in.note()
	in.win.Resume()
	in.note()
	in.note()
	if again, hold := said(); !again || hold {
		t.Errorf("resumed: again %v, hold %v", again, hold)
	}
	if again, _ := said(); again {
		t.Error("said twice")
	}
	in.note()
	if again, _ := said(); again {
		t.Error("said with the next state, too")
	}
	in.win.Refuse()
	in.win.Resume()
	in.note()
	in.win.Refuse()
	in.note()
	if again, hold := said(); again || !hold {
		t.Errorf("refused anew: again %v, hold %v", again, hold)
	}
	in.win = nil
	in.note()
	if k, _ := in.word.say(); k != kindNoLink {
		t.Errorf("over: said %c", k)
	}
}

// TestPartFitsWindow: the least window that anybody is granted holds the largest message that is
// not sent in parts, with a header, and a part while another is under way. One that fits no window
// would wait for ever.
func TestPartFitsWindow(t *testing.T) {
	if firstGrant.Bytes < 2*maxChunk {
		t.Errorf("a window of %d bytes, parts of %d", firstGrant.Bytes, maxChunk)
	}
}
