//go:build unix

package tests

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

// nemesisEnv has the test binary be a member instead of running tests.
const nemesisEnv = "NATSFABRIC_NEMESIS_MEMBER"

func init() {
	if text := os.Getenv(nemesisEnv); text != "" {
		if err := beMember(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// A memberJob says who a member process is.
type memberJob struct {
	PID   fabric.PID
	URL   string
	Peers []fabric.PID
	Lease time.Duration
}

// A record is one thing that a member saw or did. Times are of the clock that all
// processes of a machine share and that no one sets.
type record struct {
	Kind  string // joined, event, term, believes, holds, sent, linked, lost, got, view, stats
	At    int64  `json:",omitempty"` // in nanoseconds; believes, holds: before the check; term: after it
	Done  int64  `json:",omitempty"` // holds: after the check
	Run   string `json:",omitempty"` // of the process that sent, and what it sends
	PID   fabric.PID
	N     uint64            `json:",omitempty"` // of a message; linked: of the last of several; holds: the index
	OK    bool              `json:",omitempty"` // sent: answered
	Inc   uint64            `json:",omitempty"`
	Term  uint64            `json:",omitempty"`
	Token uint64            `json:",omitempty"`
	Epoch uint64            `json:",omitempty"`
	Views map[string]uint64 `json:",omitempty"` // members and their incarnations
	Text  string            `json:",omitempty"`
	Procs int               `json:",omitempty"` // goroutines
	Files int               `json:",omitempty"`
}

// sharedClock reads the time since boot.
func sharedClock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// A member process writes what it sees to stdout, each record before anybody can act
// on it: what was acknowledged was written down before.
type memberProcess struct {
	job      memberJob
	run      string // names the messages of this process
	reliable string // names those of mode Reliable
	node     *fabric.Node

	mu  sync.Mutex // of stdout
	out *bufio.Writer
}

func (m *memberProcess) write(r record) {
	if r.PID == "" {
		r.PID = m.job.PID
	}
	text, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Write(append(text, '\n'))
	if m.out.Flush() != nil {
		os.Exit(3) // the test is gone
	}
}

func beMember(text string) error {
	run := strconv.FormatInt(sharedClock(), 36)
	m := &memberProcess{run: run, reliable: run + reliableRun, out: bufio.NewWriter(os.Stdout)}
	if err := json.Unmarshal([]byte(text), &m.job); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	m.node, err = fabric.Join(ctx, fabric.Config{
		Cluster: "t", PID: m.job.PID, URL: m.job.URL, Lease: m.job.Lease, OnUndeliverable: m.undeliverable,
	})
	if err != nil {
		return err
	}
	m.write(record{Kind: "joined", At: sharedClock(), Inc: m.node.Incarnation()})
	var wg sync.WaitGroup
	wg.Go(func() { m.events(ctx) })
	wg.Go(func() { m.views(ctx) })
	wg.Go(func() { m.lead(ctx) })
	wg.Go(func() { m.hold(ctx) })
	wg.Go(func() { m.receive(ctx) })
	wg.Go(func() { m.stats(ctx) })
	for _, to := range m.job.Peers {
		if to != m.job.PID {
			wg.Go(func() { m.send(ctx, to) })
			wg.Go(func() { m.link(ctx, to) })
		}
	}
	select {
	case <-ctx.Done():
	case <-m.node.Context().Done():
		m.write(record{Kind: "event", Text: fmt.Sprint("the node ended: ", context.Cause(m.node.Context()))})
		stop()
	}
	wg.Wait()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return m.node.Leave(bounded)
}

func (m *memberProcess) events(ctx context.Context) {
	for e, err := range m.node.Events(ctx) {
		if err != nil {
			return
		}
		m.write(record{Kind: "event", At: sharedClock(), Text: e.Kind.String()})
	}
}

// views writes the view whenever it changes.
func (m *memberProcess) views(ctx context.Context) {
	for range m.node.Changes(ctx) {
		v := m.node.View()
		r := record{Kind: "view", At: sharedClock(), Epoch: v.Epoch, Views: map[string]uint64{}}
		for _, member := range v.Members {
			r.Views[string(member.PID)] = member.Incarnation
		}
		m.write(r)
	}
}

// lead leads for two seconds at a time, and writes down that it believes so.
func (m *memberProcess) lead(ctx context.Context) {
	e, err := election.New(m.node, election.Config{Name: "x"})
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		term, err := e.Campaign(ctx)
		if err != nil {
			pauseFor(ctx, 50*time.Millisecond)
			continue
		}
		if term.Valid() { // else it was over before we could act on it
			m.write(record{Kind: "term", At: sharedClock(), Term: term.Number(), Token: term.Token()})
		}
		for until := time.Now().Add(2 * time.Second); ; pauseFor(ctx, 20*time.Millisecond) {
			over := time.Now().After(until) || ctx.Err() != nil
			began := sharedClock()
			if !term.Valid() {
				break
			}
			m.write(record{Kind: "believes", At: began, Token: term.Token()}) // also after a pause
			if over {
				break
			}
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = term.Resign(bounded) // goes on in the background
		cancel()
	}
}

// hold belongs to a group whose indices nobody holds twice, and writes down what it
// holds as often as somebody who works would ask.
func (m *memberProcess) hold(ctx context.Context) {
	for ctx.Err() == nil {
		g, err := balance.Join(ctx, m.node, balance.Config{
			Group: nemesisGroup, Workers: nemesisWorkers, Mode: balance.StrictIndex,
			OnRevoke: func(context.Context, []int) {}, // who works asks before each unit
		})
		if err != nil {
			pauseFor(ctx, 50*time.Millisecond)
			continue
		}
		for ctx.Err() == nil && g.Context().Err() == nil {
			for i := range g.Share().Indices() {
				began := sharedClock()
				if token, err := g.Token(i); err == nil { // it is held at some moment of the call
					m.write(record{Kind: "holds", At: began, Done: sharedClock(), N: uint64(i), Token: token})
				}
			}
			pauseFor(ctx, 50*time.Millisecond)
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = g.Leave(bounded) // the node's Leave goes on with it
		cancel()
	}
}

// send sends numbered messages to one peer: each fifth is a request, whose answer is
// the acknowledgement.
func (m *memberProcess) send(ctx context.Context, to fabric.PID) {
	for n := uint64(1); ctx.Err() == nil; n++ {
		data := []byte(m.run + " " + strconv.FormatUint(n, 10))
		if n%5 != 0 {
			_ = m.node.Send(ctx, to, data) // refused or not: it is not acknowledged
		} else {
			try, cancel := context.WithTimeout(ctx, time.Second)
			_, err := m.node.Request(try, to, data)
			cancel()
			m.write(record{Kind: "sent", PID: to, Run: m.run, N: n, OK: err == nil})
			if err != nil {
				pauseFor(ctx, 50*time.Millisecond)
			}
		}
		pauseFor(ctx, 5*time.Millisecond)
	}
}

// reliableRun ends the Run of messages of mode Reliable; firstLinked is the ID of the
// first of them, so that no other message has theirs.
const (
	reliableRun = "-reliable"
	firstLinked = uint64(1) << 62
)

// link sends numbered messages of mode Reliable to one peer, ten at a time. A number that
// was refused is used again: it was not sent.
func (m *memberProcess) link(ctx context.Context, to fabric.PID) {
	for n := uint64(1); ctx.Err() == nil; {
		data := []byte(m.reliable + " " + strconv.FormatUint(n, 10))
		msg := &fabric.Message{To: to, ID: firstLinked + n, Data: data, Mode: fabric.Reliable}
		if err := m.node.SendMsg(ctx, msg); err != nil {
			pauseFor(ctx, 50*time.Millisecond)
			continue
		}
		if n++; n%10 == 0 {
			m.write(record{Kind: "linked", PID: to, Run: m.reliable, N: n - 1})
			pauseFor(ctx, 200*time.Millisecond)
		}
	}
}

// undeliverable writes down which messages of mode Reliable may not have arrived.
func (m *memberProcess) undeliverable(u fabric.Undeliverable) {
	if u.ID > firstLinked {
		m.write(record{Kind: "lost", At: sharedClock(), PID: u.To, Run: m.reliable, N: u.ID - firstLinked, Text: u.Err.Error()})
	}
}

func (m *memberProcess) receive(ctx context.Context) {
	for msg, err := range m.node.Messages(ctx) {
		if err != nil {
			return
		}
		run, text, _ := strings.Cut(string(msg.Data), " ")
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			m.write(record{Kind: "event", Text: "garbage: " + string(msg.Data)})
			continue
		}
		m.write(record{Kind: "got", At: sharedClock(), PID: msg.From, Run: run, N: n})
		if msg.IsRequest() {
			_ = msg.Reply(ctx, nil) // unanswered is unacknowledged
		}
	}
}

// stats writes what the process uses.
func (m *memberProcess) stats(ctx context.Context) {
	for ctx.Err() == nil {
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil { // no such system: goroutines alone
			files = nil
		}
		m.write(record{Kind: "stats", At: sharedClock(), Procs: runtime.NumGoroutine(), Files: len(files)})
		pauseFor(ctx, 500*time.Millisecond)
	}
}

func pauseFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
