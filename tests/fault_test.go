//go:build unix

package tests

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Two processes, a talker and a listener, on their way to each other whatever breaks.
// What each of them knows at the end must fit together: see checkHistory.

const (
	faultRate  = 50_000 // a second, in mode Reliable
	faultLanes = 8      // in mode Acked
)

// A dialogue is a talker and a listener.
type dialogue struct {
	t                *testing.T
	talker, listener *actor
	began            time.Time
}

// startDialogue starts both, each with a way of its own to the server.
func startDialogue(t *testing.T, talkerURL, listenerURL string, tune ...func(*part)) *dialogue {
	t.Helper()
	dir := t.TempDir()
	// None of the faults is to end a lease.
	p := part{Lease: 30 * time.Second, Rate: faultRate, Lanes: faultLanes}
	for _, f := range tune {
		f(&p)
	}
	l, k := p, p
	l.Role, l.PID, l.URL, l.History = "listener", "listener", listenerURL, filepath.Join(dir, "listener")
	k.Role, k.PID, k.URL, k.History = "talker", "talker", talkerURL, filepath.Join(dir, "talker")
	d := &dialogue{t: t, listener: enact(t, l), talker: enact(t, k)}
	d.more(p.Rate / 2)
	d.began = time.Now()
	return d
}

// more waits until so many more messages of mode Reliable are acknowledged, and some of
// those that are one by one.
func (d *dialogue) more(n int) {
	d.t.Helper()
	calls := d.talker.value("calls")
	d.talker.await("acked", atLeast(d.talker.value("acked")+n))
	d.talker.await("calls", atLeast(calls+100))
}

// check ends both, and checks what they did. It returns what the talker was told.
func (d *dialogue) check() count {
	d.t.Helper()
	took := time.Since(d.began)
	sent := d.talker.value("sent")
	d.talker.end()
	d.listener.end()
	n, err := checkHistory(readJournal(d.t, d.talker.part.History), readJournal(d.t, d.listener.part.History))
	if err != nil {
		d.t.Error(err)
	}
	if acked := d.talker.value("acked"); acked < sent {
		d.t.Errorf("%d of %d reliable messages were acknowledged", acked, sent)
	}
	d.t.Logf("%d sent reliably in %v, %d a second; one by one: %d acked, %d unknown, %d refused; %d received",
		sent, took, int(float64(sent)/took.Seconds()), d.talker.value("calls"), n["unknown"], n["refused"], n["got"])
	return n
}

// rounds is how often a fault is repeated: usual times, unless -full.
func rounds(usual int) int {
	if *full {
		return 20
	}
	return usual
}

// TestFaultServerKilled kills the server, a process, with SIGKILL under load, and starts
// it again.
func TestFaultServerKilled(t *testing.T) {
	t.Parallel()
	s := natstest.StartProcesses(t, 1)
	d := startDialogue(t, s.URL(), s.URL())
	for range rounds(2) {
		s.Kill(0)
		s.Start(0)
		d.more(faultRate)
	}
	if n := d.check(); n["unknown"]+n["refused"] == 0 {
		t.Error("no outcome was unknown, nothing was refused: no fault was felt")
	}
}

// TestFaultReceiverStopped stops the receiver for three seconds: its sender is held back,
// and goes on where it stopped.
func TestFaultReceiverStopped(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	d := startDialogue(t, s.URL(), s.URL())
	for range rounds(1) {
		d.listener.signal(syscall.SIGSTOP)
		<-time.After(time.Second) // what came before the stop is told of
		before := d.talker.value("sent")
		<-time.After(2 * time.Second)
		if ahead := d.talker.value("sent") - before; ahead > 4096 { // the window
			t.Errorf("%d messages were sent to one who does not run", ahead)
		}
		d.listener.signal(syscall.SIGCONT)
		d.more(faultRate)
	}
	if n := d.check(); n["unknown"] == 0 {
		t.Error("no outcome was unknown")
	}
}

// TestFaultLinks spoils the ways of both processes to the server, one after the other.
func TestFaultLinks(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	target := strings.TrimPrefix(s.URL(), "nats://")
	ways := []*natstest.Proxy{natstest.NewProxy(t, target, 1), natstest.NewProxy(t, target, 2)}
	d := startDialogue(t, "nats://"+ways[0].Addr(), "nats://"+ways[1].Addr())
	for range rounds(1) {
		for _, w := range ways {
			for _, fault := range []func(){
				w.Cut,
				func() { w.Cut(); w.Reset() },
				func() { w.CutOneWay(natstest.ToServer) },
				func() { w.CutOneWay(natstest.ToClient) },
				func() { w.CutOneWay(natstest.ToClient); w.Reset() },
				func() { w.Delay(30 * time.Millisecond) },
				func() { w.Lose(0.05) },
				w.Reset,
			} {
				fault()
				<-time.After(200 * time.Millisecond)
				w.Heal()
				d.more(2000)
			}
		}
	}
	if n := d.check(); n["unknown"]+n["refused"] == 0 {
		t.Error("no outcome was unknown, nothing was refused: no fault was felt")
	}
}

// TestFaultSlowLink has an answer take longer than the time after which one is asked for,
// and breaks connections all the same: what is lost is found out, and sent again.
func TestFaultSlowLink(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	way := natstest.NewProxy(t, strings.TrimPrefix(s.URL(), "nats://"), 1)
	d := startDialogue(t, s.URL(), "nats://"+way.Addr(), func(p *part) { p.Rate /= 10 })
	way.Delay(150 * time.Millisecond) // each way
	for range rounds(1) {
		way.Reset()
		d.more(1000)
	}
	way.Heal()
	d.check()
}

// TestFaultSenderKilled kills a process that is sending a large message: the receiver
// gives back the memory for it, and its program sees nothing of it.
func TestFaultSenderKilled(t *testing.T) {
	t.Parallel()
	for _, mode := range []fabric.Mode{fabric.Reliable, fabric.Acked} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			senderKilled(t, mode)
		})
	}
}

func senderKilled(t *testing.T, mode fabric.Mode) {
	const size = 40 << 20 // more than half of what the receiver keeps
	s := natstest.Start(t)
	way := natstest.NewProxy(t, strings.TrimPrefix(s.URL(), "nats://"), 1)
	dir := t.TempDir()
	p := part{Lease: time.Second, Mode: mode.String(), Size: size, Count: 1}
	l, k := p, p
	l.Role, l.PID, l.URL, l.History = "listener", "listener", s.URL(), filepath.Join(dir, "listener")
	k.Role, k.PID, k.URL, k.History = "sender-of-one", "sender", "nats://"+way.Addr(), filepath.Join(dir, "first")
	listener := enact(t, l)
	listener.await("joined", atLeast(1))
	sender := enact(t, k)
	sender.await("joined", atLeast(1))
	way.Delay(50 * time.Millisecond) // there is time to see it come
	sender.await("sending", atLeast(1))
	listener.await("assembling", atLeast(size))
	sender.kill()
	killed := time.Now()
	listener.await("assembling", func(n int) bool { return n == 0 })
	t.Logf("the memory is back after %v", time.Since(killed))
	if got := listener.value("got"); got != 0 {
		t.Errorf("%d messages were received", got)
	}
	// The next process under that PID has its own.
	again := k
	again.URL, again.History = s.URL(), filepath.Join(dir, "second")
	enact(t, again).wait()
	listener.end()
	n, err := checkHistory(readJournal(t, again.History), readJournal(t, l.History))
	if err != nil || n["acked"] != 1 || n["got"] != 1 {
		t.Errorf("%v: %v", n, err)
	}
}

// TestFaultMailLeaderKilled kills the server that leads the mail stream, of three, while
// mail flows: nothing that was stored is lost, and nothing is handled twice.
func TestFaultMailLeaderKilled(t *testing.T) {
	t.Parallel()
	s := natstest.StartProcesses(t, 3)
	d := startDialogue(t, s.URL(), s.URL(), func(p *part) {
		p.Rate, p.Lanes, p.Mode, p.Mailbox = 0, 4*faultLanes, fabric.Durable.String(), true
	})
	for range rounds(1) {
		leader := s.LeaderOf("fab_t_production_mail")
		s.Kill(leader)
		d.more(0)
		s.Start(leader)
		s.WaitReady()
		d.more(0)
	}
	if n := d.check(); n["got"] < 300 {
		t.Errorf("%v", n)
	}
}
