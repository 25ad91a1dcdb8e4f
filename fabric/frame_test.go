package fabric

import (
	"bytes"
	"hash/crc32"
	"log/slog"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/window"
)

func TestFrame(t *testing.T) {
	items := []item{
		{kind: kindSend, id: 1, data: []byte("a")},
		{kind: kindSend, id: math.MaxUint64, typ: "T9", data: []byte{}},
		{kind: kindRequest, id: 3, secret: "0123456789", header: nats.Header{"K": {"v", "w"}}, data: []byte("x")},
		{kind: kindSend, id: 4, more: true, total: 1 << 40, hasCRC: true, crc: 7, data: []byte("part")},
		{kind: kindPart, more: true, hasCRC: true, crc: 1, data: []byte("part")},
		{kind: kindPart, data: []byte{}},
	}
	var b []byte
	for i := range items {
		b = appendItem(b, &items[i])
	}
	r := frameReader{b: b}
	for i := range items {
		var got item
		if !r.next(&got) || !reflect.DeepEqual(got, items[i]) {
			t.Errorf("item %d is %+v, want %+v", i, got, items[i])
		}
	}
	if r.next(new(item)) || r.bad {
		t.Errorf("the frame does not end well: %v", r.bad)
	}
	for n := range len(b) {
		r := frameReader{b: b[:n]}
		count := 0
		for it := (item{}); r.next(&it); count++ {
		}
		if count == len(items) {
			t.Errorf("%d of %d bytes have all items", n, len(b))
		}
	}
}

// FuzzFrame: what is read of a frame is written as it was, no more is allocated than a
// frame of its size may need, and nothing panics.
func FuzzFrame(f *testing.F) {
	f.Add(appendItem(nil, &item{kind: kindSend, id: 7, typ: "T", data: []byte("data")}))
	f.Add(appendItem(nil, &item{kind: kindHandle, id: 7, secret: "0123456789", header: nats.Header{"A": {"b"}}}))
	f.Add(appendItem(nil, &item{kind: kindSend, id: 7, more: true, total: 3 << 30, hasCRC: true, data: []byte("data")}))
	f.Add([]byte{'s', 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x7f, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := frameReader{b: b}
		var all []byte
		for it := (item{}); r.next(&it); {
			if len(it.header) > 1 {
				return // the order of its keys is not kept
			}
			if it.header != nil && len(it.data) > len(b) {
				t.Errorf("%d bytes of %d", len(it.data), len(b))
			}
			all = appendItem(all, &it)
		}
		if !r.bad {
			again := frameReader{b: all}
			for it := (item{}); again.next(&it); {
			}
			if again.bad {
				t.Errorf("%q is read, and written as %q", b, all)
			}
		}
	})
}

// TestClaims: 200 bytes that claim gigabytes allocate nothing of them.
func TestClaims(t *testing.T) {
	in := partLink(DefaultInboxBytes)
	frame := appendItem(nil, &item{kind: kindSend, id: 1, more: true, total: 60 << 20, hasCRC: true, crc: crc32.Checksum([]byte("x"), castagnoli), data: []byte("x")})
	frame = append(frame, bytes.Repeat([]byte{0xff}, 100)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		r := frameReader{b: frame}
		for it := (item{}); r.next(&it); {
			_, _ = in.part(&it)
		}
		in.dropPartial()
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated for 100 frames of %d", n, len(frame))
	}
}

// partLink returns a link to which messages in parts come, without a network.
func partLink(memory int64) *inLink {
	c := &courier{log: slog.New(slog.DiscardHandler), inbox: newInbox(Inbox{})}
	c.notices.wake = make(chan struct{}, 1)
	c.memory.limit = memory
	c.links.init(c)
	in := newInLink(c, "0123456789", "a", "012345")
	in.win = window.NewReceiver(firstGrant)
	return in
}

// TestUncleared: the memory for a message in parts is all of the message's, and no more.
func TestUncleared(t *testing.T) {
	for _, n := range []int{0, 1, 7, 1000, 1 << 20} {
		b := uncleared(n)
		if len(b) != 0 || cap(b) != n {
			t.Errorf("%d bytes: length %d, capacity %d", n, len(b), cap(b))
		}
		b = b[:n]
		for i := range b {
			b[i] = byte(i) // the race detector and the collector know of it
		}
	}
}

// FuzzParts: whatever parts come, a message that comes whole is what was sent, what
// is held is bounded by what came, and what is reserved is given back.
func FuzzParts(f *testing.F) {
	f.Add([]byte{0, 10, 2, 10, 3, 10})
	f.Add([]byte{0, 200, 0, 5, 3, 1, 4, 1, 1, 9, 3, 255})
	f.Add([]byte{5, 9, 3, 9, 0, 1, 2, 0, 3, 0, 6, 6})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const limit = 1000
		in := partLink(limit)
		var want []byte // of the message under way; nil if there is none
		var total uint64
		held := int64(0)
		for len(ops) >= 2 {
			op, n := ops[0]%7, int(ops[1])
			ops = ops[2:]
			data := bytes.Repeat([]byte{byte(n)}, n)
			it := item{kind: kindPart, more: true, hasCRC: true, crc: crc32.Checksum(slices.Concat(want, data), castagnoli), data: data}
			switch op {
			case 0, 5: // begins; 5: too large ever
				total = uint64(2 * n)
				if op == 5 {
					total = limit + uint64(n) + 1
				}
				it = item{kind: kindSend, id: 1, more: true, total: total, hasCRC: true, crc: crc32.Checksum(data, castagnoli), data: data}
			case 1:
				it.crc++
			case 3: // the last, as it should be
				it.more = false
			case 4: // given up
				it = item{kind: kindPart}
			case 6: // the last, of something else
				it.more = false
				it.crc = crc32.Checksum(data, castagnoli) + 1
			}
			p, err := in.part(&it)
			switch {
			case err == errNoMemory:
				t.Fatal("no memory though nothing is held")
			case err != nil && op == 0: // whatever came before
				t.Fatalf("a message begins: %v", err)
			case p != nil:
				whole := append(slices.Clone(want), data...)
				if !bytes.Equal(p.item.data, whole) || uint64(len(whole)) != total {
					t.Fatalf("%d bytes came whole, %d were sent, %d announced", len(p.item.data), len(whole), total)
				}
				in.c.memory.free(p.total) // the program takes it
				want = nil
			case in.partial == nil:
				want = nil
			case err == nil && it.kind != kindPart:
				want = slices.Clone(data)
			case err == nil:
				want = append(want, data...)
			}
			held = 0
			if in.partial != nil {
				for _, part := range in.partial.parts {
					held += int64(len(part))
				}
				held += int64(len(in.partial.item.data))
				if room := int64(cap(in.partial.item.data)); room > 4*held+3 {
					t.Fatalf("%d bytes are allocated, %d came", room, held)
				}
				if in.partial.skip && held > 0 || !in.partial.skip && held != int64(len(want)) {
					t.Fatalf("%d bytes are held, %d came", held, len(want))
				}
			}
			if used := in.c.memory.used; used > limit || in.partial == nil && used != 0 {
				t.Fatalf("%d bytes are reserved", used)
			}
		}
		in.dropPartial()
		if in.c.memory.used != 0 {
			t.Fatalf("%d bytes stay reserved", in.c.memory.used)
		}
	})
}

// TestSeries: the ids of a frame are read back from its tag.
func TestSeries(t *testing.T) {
	for _, ids := range [][]uint64{
		{1}, {1, 2, 3}, {5, 9, 13, 17, 18}, {7, 8, 100, 101, 102, 1000}, {math.MaxUint64 - 2, math.MaxUint64},
	} {
		var s series
		for _, id := range ids {
			if !s.add(id) {
				t.Fatalf("%v: %d is refused", ids, id)
			}
		}
		var got []uint64
		steps := string(s.appendSteps(nil))
		if len(ids) > 1 && !eachID(ids[0], steps, func(id uint64) { got = append(got, id) }) || len(ids) > 1 && !slices.Equal(got, ids) {
			t.Errorf("%v stands as %q, and is read as %v", ids, steps, got)
		}
	}
	var s series
	s.add(5)
	if s.add(5) || s.add(4) {
		t.Error("ids that do not rise are taken")
	}
	n := 0
	for id, step := uint64(6), uint64(1); s.add(id); id, step = id+step, step+1 {
		n++
	}
	if steps := s.appendSteps(nil); len(steps) > maxSteps || n < 20 {
		t.Errorf("%d ids take %d bytes", n, len(steps))
	}
}

func FuzzSteps(f *testing.F) {
	f.Add(uint64(1), "1:10_3_4:2")
	f.Add(uint64(9), "")
	f.Fuzz(func(t *testing.T, first uint64, steps string) {
		n := 0
		if eachID(first, steps, func(uint64) { n++ }); n > maxFrameItems {
			t.Errorf("%q stands for %d ids", steps, n)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(appendState(nil, window.State{Cum: 5, Grant: window.Grant{Seq: 9, Bytes: 1 << 40}, Seen: 7, Probe: 2, Hold: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, ok := parseState(b)
		if !ok {
			return
		}
		if again, ok := parseState(appendState(nil, st)); !ok || again != st {
			t.Errorf("%+v is written as %+v", st, again)
		}
		s := window.NewSender(firstGrant)
		s.Take(1)
		s.Heard(st)
		if s.Acked() > 1 {
			t.Errorf("%+v: %d is accepted, 1 was sent", st, s.Acked())
		}
	})
}

// FuzzChunkSubject: a stream's subject is what the builder builds.
func FuzzChunkSubject(f *testing.F) {
	f.Add("fab.c1.test.s.b.a.0123456789")
	f.Add("fab.c1.test.s.b.a.b.0123456789")
	f.Fuzz(func(t *testing.T, subject string) {
		b := newSubjects("c1", "test", "b")
		from, name, ok := b.parseChunk(subject)
		if ok && newSubjects("c1", "test", from).chunk("b", name) != subject || ok && strings.Contains(string(from), ".") {
			t.Errorf("parseChunk(%q) = %q, %q", subject, from, name)
		}
	})
}
