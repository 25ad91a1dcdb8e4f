package window

import (
	"math/rand/v2"
	"testing"
)

// A world is one link over a path that loses, repeats and delays.
type world struct {
	t   *testing.T
	rnd *rand.Rand
	s   *Sender
	r   *Receiver

	there []packet // to the receiver
	back  []State

	sizes    map[uint64]uint64
	accepted uint64   // the last number
	held     []uint64 // sizes accepted and not consumed
	limit    Grant
	refuse   bool // the receiver has no memory
	faults   int
}

type packet struct {
	seq, size uint64 // seq 0: a probe
	probe     uint64
}

func newWorld(t *testing.T, seed uint64) *world {
	rnd := rand.New(rand.NewPCG(seed, 1))
	limit := Grant{Seq: 4 + rnd.Uint64N(60), Bytes: 100 + rnd.Uint64N(2000)}
	return &world{
		t: t, rnd: rnd, limit: limit, s: NewSender(Grant{Seq: 2, Bytes: 50}), r: NewReceiver(limit),
		sizes: make(map[uint64]uint64),
	}
}

func (w *world) pack(p packet) {
	w.there = append(w.there, p)
}

// step does one thing at random. With faults off the path is what NATS is on a
// connection: nothing is lost.
func (w *world) step(faults bool) {
	switch n := w.rnd.IntN(100); {
	case n < 35:
		if size := w.rnd.Uint64N(50); w.s.Room(size) {
			seq := w.s.Take(size)
			w.sizes[seq] = size
			w.pack(packet{seq: seq, size: size})
		}
	case n < 60:
		w.arrive(faults)
	case n < 75:
		w.hear(faults)
	case n < 90:
		w.consume()
	case n < 93:
		w.probe()
	case faults && n < 97:
		w.fault()
	case faults:
		if w.refuse = !w.refuse; !w.refuse {
			w.r.Resume()
			w.back = append(w.back, w.r.State())
		}
	}
}

func (w *world) probe() {
	n, _ := w.s.Probe()
	w.pack(packet{probe: n})
}

// fault is what a connection that is replaced does, and what it may not do.
func (w *world) fault() {
	w.faults++
	switch w.rnd.IntN(4) {
	case 0: // what is under way is lost, from some point on
		w.there = w.there[:w.rnd.IntN(len(w.there)+1)]
	case 1:
		w.back = w.back[:w.rnd.IntN(len(w.back)+1)]
	case 2:
		if len(w.there) > 0 { // repeated, late
			w.there = append(w.there, w.there[w.rnd.IntN(len(w.there))])
		}
	case 3:
		w.rnd.Shuffle(len(w.there), func(i, j int) { w.there[i], w.there[j] = w.there[j], w.there[i] })
		w.rnd.Shuffle(len(w.back), func(i, j int) { w.back[i], w.back[j] = w.back[j], w.back[i] })
	}
}

func (w *world) arrive(faults bool) {
	if len(w.there) == 0 {
		return
	}
	p := w.there[0]
	w.there = w.there[1:]
	if p.seq == 0 {
		w.r.Probed(p.probe)
		w.back = append(w.back, w.r.State())
		return
	}
	switch w.r.Look(p.seq, p.size) {
	case Accept:
		if w.refuse && faults {
			w.r.Refuse()
			break
		}
		w.r.Accepted(p.size)
		if p.seq != w.accepted+1 || p.size != w.sizes[p.seq] {
			w.t.Fatalf("accepted %d after %d", p.seq, w.accepted)
		}
		w.accepted = p.seq
		w.held = append(w.held, p.size)
		var sum uint64
		for _, size := range w.held {
			sum += size
		}
		if uint64(len(w.held)) > w.limit.Seq || sum > w.limit.Bytes {
			w.t.Fatalf("%d messages, %d bytes wait; the limit is %+v", len(w.held), sum, w.limit)
		}
	case Beyond:
		w.t.Fatalf("%d was sent beyond the grant", p.seq)
	}
	if w.rnd.IntN(3) == 0 {
		w.back = append(w.back, w.r.State())
	}
}

func (w *world) consume() {
	if len(w.held) > 0 {
		size := w.held[0]
		w.held = w.held[1:]
		if w.r.Consume(1, size) {
			w.back = append(w.back, w.r.State())
		}
	}
}

func (w *world) hear(bool) {
	if len(w.back) == 0 {
		return
	}
	st := w.back[0]
	w.back = w.back[1:]
	if _, again := w.s.Heard(st); again {
		for seq := w.s.Acked() + 1; seq < w.s.Next(); seq++ {
			w.pack(packet{seq: seq, size: w.sizes[seq]})
		}
	}
	if w.s.Acked() > w.accepted {
		w.t.Fatalf("%d counts as accepted, %d was", w.s.Acked(), w.accepted)
	}
}

// TestSimulation: whatever the path does, each message is accepted once and in
// order, the window is kept, and once the path is good again all is accepted.
func TestSimulation(t *testing.T) {
	faults, messages := 0, uint64(0)
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		for range 5000 {
			w.step(true)
		}
		w.refuse = false
		w.r.Resume()
		// The path is good now: a probe every now and then, as the sender's timer does.
		for n := 0; !w.s.Idle(); n++ {
			if n == 100_000 {
				t.Fatalf("seed %d: stuck at %d of %d", seed, w.s.Acked(), w.s.Next()-1)
			}
			if n%50 == 49 {
				w.probe()
			}
			w.arrive(false)
			w.hear(false)
			w.consume()
		}
		if w.accepted+1 != w.s.Next() {
			t.Fatalf("seed %d: accepted %d of %d", seed, w.accepted, w.s.Next()-1)
		}
		faults += w.faults
		messages += w.accepted
	}
	t.Logf("%d messages, %d faults", messages, faults)
	if faults < 50_000 || messages < 40_000 {
		t.Errorf("only %d messages, %d faults", messages, faults)
	}
}

// TestNothingTwice: on a path that loses nothing, nothing is sent twice.
func TestNothingTwice(t *testing.T) {
	for seed := range uint64(100) {
		w := newWorld(t, seed)
		for range 5000 {
			if len(w.back) > 0 {
				st := w.back[0]
				if _, again := w.s.Heard(st); again {
					t.Fatalf("seed %d: sent again on %+v", seed, st)
				}
				w.back = w.back[1:]
			}
			w.step(false)
		}
	}
}

func TestForgedState(t *testing.T) {
	s := NewSender(Grant{Seq: 10, Bytes: 10})
	s.Take(1)
	if progress, again := s.Heard(State{Cum: 5}); progress || again || s.Acked() != 0 {
		t.Errorf("accepted what was not sent: %d", s.Acked())
	}
}

// On a slow path, the next probe is out before the answer to the one before has come.
// The answer counts all the same; those to probes that were sent before the messages
// were sent again say nothing about these.
func TestProbesOverlap(t *testing.T) {
	s := NewSender(Grant{Seq: 100, Bytes: 100})
	for range 3 {
		s.Take(1)
	}
	ask := func() uint64 { n, _ := s.Probe(); return n }
	heard := func(probe, cum uint64, want bool) {
		t.Helper()
		if _, again := s.Heard(State{Probe: probe, Cum: cum}); again != want {
			t.Errorf("after the answer to probe %d, that %d came: again %v, want %v", probe, cum, again, want)
		}
	}
	one, two := ask(), ask()
	s.Take(1)
	three := ask()
	heard(one, 0, true) // and so they are sent again
	heard(two, 0, false)
	heard(three, 0, false)
	four := ask()
	s.Take(1) // after the probe: it need not have come
	heard(one, 0, false)
	five := ask()
	heard(four, 4, false)
	heard(five, 4, true)
	heard(five+1, 4, false) // nobody asked that
	for range 1000 {        // nobody answers
		ask()
	}
	six := ask()
	heard(six, 4, true)
	if len(s.probes) > 0 {
		t.Errorf("%d probes are remembered that are answered", len(s.probes))
	}
}

// TestTold: the sender is told when a quarter of the window is free again, of its messages or
// its bytes, and of a large window when a part of a large message is.
func TestTold(t *testing.T) {
	for _, c := range []struct {
		limit    Grant
		size     uint64
		messages int // after which it is told
	}{
		{Grant{Seq: 100, Bytes: 1 << 30}, 1, 25},
		{Grant{Seq: 100, Bytes: 8000}, 100, 20},
		{Grant{Seq: 4096, Bytes: 4 << 20}, 1 << 10, 256},
		{Grant{Seq: 4096, Bytes: 4 << 20}, 256 << 10, 1},
		{Grant{Seq: 4096, Bytes: 4 << 20}, 128 << 10, 2},
		{Grant{Seq: 4096, Bytes: 512 << 10}, 64 << 10, 2},
	} {
		r := NewReceiver(c.limit)
		for range 2 { // and so on
			n := 1
			for r.Accepted(c.size); !r.Consume(1, c.size); r.Accepted(c.size) {
				n++
			}
			r.State()
			if n != c.messages {
				t.Errorf("%+v: told after %d messages of %d bytes, want %d", c.limit, n, c.size, c.messages)
			}
		}
	}
}
