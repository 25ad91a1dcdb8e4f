package fabric

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"
)

// TestGatherForged: one answer each, and none in another's name or without the secret.
func TestGatherForged(t *testing.T) {
	_, all := members(t, nil, "a", "b", "c")
	a, b, c := all["a"], all["b"], all["c"]
	ctx := deadline(t)
	heardB, done := make(chan bool), make(chan error, 1)
	go func() {
		var order []PID
		for m, err := range a.Gather(ctx, Query{}, nil) {
			if err != nil || string(m.Data) != "true" {
				done <- fmt.Errorf("gathered %+v, %w", m, err)
				return
			}
			if order = append(order, m.From); len(order) == 1 {
				close(heardB)
			}
		}
		if !slices.Equal(order, []PID{"b", "c"}) {
			done <- fmt.Errorf("%v have answered, want b and c", order)
		}
		done <- nil
	}()
	m, mc := receive(t, b), receive(t, c)
	end := m.asked().nonce + m.asked().end()
	raw := b.courier.nc
	for _, subject := range []string{
		"a.ext.a" + end, "a._.a" + end, "a._.e" + end, // from outside, and from nobody
		"a.c.a" + m.asked().nonce + ".1-0123456789",                                            // without the secret
		"a.c.a" + m.asked().nonce + ".99" + m.asked().end()[len(m.asked().end())-secretLen-1:], // another id
		"a.c.a" + "012345" + m.asked().end(),                                                   // another's
	} {
		if err := raw.Publish(atR+subject, []byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	// b says that nobody hears, as the server would say it.
	fake := &nats.Msg{Subject: atR + "a.b.q" + end, Header: nats.Header{"Status": {"503"}}}
	if err := raw.PublishMsg(fake); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := raw.Publish(atR+"a.b.a"+end, []byte("true")); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heardB:
	case err := <-done:
		t.Fatal(err)
	}
	if err := mc.Reply(ctx, []byte("true")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzQuery: whatever comes for a query, each process is heard once, who is known is
// in bounds, and so are the bytes that wait.
func FuzzQuery(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 200, 201, 255})
	f.Add([]byte("abcdabcdabcd~~~~0000"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		const maxMsgs, maxBytes = 8, 100
		const members = 4 // in the view, of 16
		c := &courier{inbox: newInbox(Inbox{Messages: maxMsgs, Bytes: maxBytes})}
		c.cfg.known = func(pid PID) bool { return len(pid) == 1 && pid < "4" }
		c.queries.init(c)
		s := &c.queries
		w := s.open(7, "subject")
		seen := make(map[PID]bool)
		read := func() bool {
			a, ok, err := w.next()
			if !ok {
				return false
			}
			if err != nil || seen[a.from] || a.from == External {
				t.Fatalf("heard %v, %v; before: %v", a, err, seen)
			}
			seen[a.from] = true
			return true
		}
		ended := false
		for i, op := range ops {
			tg := tag{id: 7, secret: w.secret}
			a := answer{kind: kindAnswer, from: PID(fmt.Sprint(op % 16)), data: make([]byte, int(op)/4)}
			switch op >> 5 {
			case 0:
				read()
				continue
			case 1:
				tg.secret = random(secretLen)
			case 2:
				tg.id++
			case 3:
				a.from = External
			case 4:
				if i%8 == 0 {
					s.end(tg, errBounced)
					ended = true
				}
				continue
			default:
			}
			known := len(w.known)
			s.heard(tg, a)
			if forged := op>>5 >= 1 && op>>5 <= 3; forged && len(w.known) != known {
				t.Fatalf("op %d: a forged answer was heard", op)
			}
			if len(w.known) > maxMsgs+members || w.waiting > maxMsgs || w.waiting < 0 || w.bytes > maxBytes || w.bytes < 0 {
				t.Fatalf("%d known, %d wait, %d bytes", len(w.known), w.waiting, w.bytes)
			}
		}
		for read() {
		}
		if _, _, err := w.next(); (err != nil) != ended || w.bytes != 0 || w.waiting != 0 || len(seen) != len(w.known) {
			t.Fatalf("ended with %v, %d bytes left, heard %d of %d", err, w.bytes, len(seen), len(w.known))
		}
		s.close(w)
		s.heard(tag{id: 7, secret: w.secret}, answer{from: "late"})
		if w.known["late"] || len(s.m) != 0 {
			t.Fatal("a closed query hears")
		}
	})
}
