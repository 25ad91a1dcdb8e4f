package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

type runFlags struct {
	workers     int
	elect       []string
	topics      []string
	services    []string
	meta        stringMap
	print, echo bool
	mailbox     bool
	master      master
}

func newRun(a *app) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Be a member of the fabric until INT or TERM",
		Long: `Join the fabric as a member and report what happens to it: messages, leaders,
indices, the connection. The first INT or TERM leaves in order; a second ends the
process at once.`,
		Example: `  fabric-node run -k shop -i web-1 --print
  fabric-node run -k shop -n 4 --elect billing -o ndjson
  fabric-node run -k shop -i web-1 --mailbox
  fabric-node run -k shop --topic prices --serve echo --print
  fabric-node run -k shop --meta zone=a --meta role=web --echo
  fabric-node run --embedded --store /var/lib/fabric   # with a server of its own`,
		Args: exactly(0, 0, "[-n WORKERS] [--elect NAME]... [--meta KEY=VALUE]..."),
	}
	cmd.RunE = a.untilSignal(func(ctx context.Context, _ []string) error { return a.runMember(ctx, &f, cmd.Flags()) })
	fs := cmd.Flags()
	fs.IntVarP(&f.workers, "workers", "n", 0, "take `N` indices of the balance group -p (default 0: not in the group)")
	fs.StringArrayVar(&f.elect, "elect", nil, "stand for election `NAME`; repeatable")
	fs.StringArrayVar(&f.topics, "topic", nil, "join topic `NAME`: report what others publish to it; repeatable")
	fs.StringArrayVar(&f.services, "serve", nil, "serve `SERVICE`: answer each anycast to it with its own data; repeatable")
	fs.Var(&f.meta, "meta", "what members shows of this one; repeatable")
	fs.BoolVar(&f.print, "print", false, "show messages' data in the table output too")
	fs.BoolVar(&f.echo, "echo", false, "answer each request with its own data")
	fs.BoolVar(&f.mailbox, "mailbox", false, "receive what was sent --mode durable, also while no process had this --pid")
	f.master.bindEmbedded(fs)
	return cmd
}

func (a *app) runMember(ctx context.Context, f *runFlags, fs *pflag.FlagSet) error {
	if f.workers < 0 {
		return usagef("-n %d: the number of workers cannot be negative", f.workers)
	}
	ep, stopServer, err := a.server(ctx, &f.master, fs)
	if err != nil {
		return err
	}
	cfg := a.config(ep, false)
	cfg.Meta = f.meta
	cfg.Mailbox.On = f.mailbox
	return errors.Join(a.member(ctx, cfg, f), stopServer())
}

// member joins, takes part until ctx or the node ends, and leaves.
func (a *app) member(ctx context.Context, cfg fabric.Config, f *runFlags) error {
	node, err := a.join(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil // a signal came before the fabric
		}
		return err
	}
	m := newMember(ctx, a, node, a.events())
	m.out.emit(m.joined(node.Incarnation()))
	m.watchNode()
	m.messages(f.print, f.echo)
	m.refuseFiles()
	for _, name := range f.topics {
		m.topic(name)
	}
	for _, name := range f.services {
		m.serve(name, f.print)
	}
	for _, name := range f.elect {
		m.elect(name)
	}
	if f.workers > 0 {
		m.balance(f.workers)
	}
	return m.wait(ctx)
}

// A member is a node and the goroutines that report on it. They end when the
// member's context does; only the messages are read to the last one.
type member struct {
	app    *app
	node   *fabric.Node
	out    *events
	ctx    context.Context
	cancel context.CancelCauseFunc

	patience time.Duration // of leaving

	work sync.WaitGroup // stops before the node leaves
	read sync.WaitGroup // ends when the node has left

	stopReading context.CancelFunc
	reading     bool
	lastMessage string        // the data of a message to itself, after which wait leaves
	lastRead    chan struct{} // closed when the reader has seen it
}

func newMember(ctx context.Context, a *app, node *fabric.Node, out *events) *member {
	m := &member{
		app: a, node: node, out: out, patience: a.opts.timeout,
		stopReading: func() {}, lastMessage: nuid.Next(), lastRead: make(chan struct{}),
	}
	m.ctx, m.cancel = context.WithCancelCause(ctx)
	return m
}

func (m *member) joined(incarnation uint64) joinedEvent {
	return joinedEvent{"joined", m.node.PID(), incarnation, m.app.opts.cluster, m.app.opts.env}
}

// emit reports ev; a reader who is gone ends the member.
func (m *member) emit(ev event) {
	if err := m.out.emit(ev); err != nil {
		m.cancel(err)
	}
}

// fail ends the member, unless it is ending.
func (m *member) fail(err error) {
	if err != nil && m.ctx.Err() == nil && !errors.Is(err, fabric.ErrClosed) {
		m.cancel(err)
	}
}

// watchNode reports the events of the node itself.
func (m *member) watchNode() {
	m.work.Go(func() {
		for ev, err := range m.node.Events(m.ctx) {
			switch {
			case err != nil:
				m.fail(err)
				return
			case ev.Kind == fabric.Rejoined:
				m.emit(m.joined(ev.Incarnation))
			default:
				e := nodeEvent{Type: ev.Kind.String(), PID: m.node.PID()}
				if ev.Err != nil {
					e.Error = m.app.redact(ev.Err.Error())
				}
				m.emit(e)
			}
		}
	})
}

// messages reports the messages until the node has left.
func (m *member) messages(print, echo bool) {
	ctx, stop := context.WithCancel(context.WithoutCancel(m.ctx))
	m.stopReading, m.reading = stop, true
	m.read.Go(func() {
		defer close(m.lastRead)
		for msg, err := range m.node.Messages(ctx) {
			if err != nil {
				m.fail(err)
				return
			}
			if msg.From == m.node.PID() && string(msg.Data) == m.lastMessage {
				return
			}
			m.emit(newMessageEvent(msg, print))
			if err := msg.Done(ctx, nil); err != nil {
				m.app.log.Warn("message will come again", "from", msg.From, "err", err)
			}
			if echo && msg.IsRequest() {
				if err := msg.Reply(ctx, msg.Data); err != nil {
					m.app.log.Warn("reply failed", "to", msg.From, "err", err)
				}
			}
		}
	})
}

// refuseFiles tells who sends a file that recv would take it: a sender waits for as long
// as a stream may still be accepted.
func (m *member) refuseFiles() {
	m.work.Go(func() {
		for {
			s, err := m.node.AcceptStream(m.ctx)
			if err != nil {
				return
			}
			s.Close()
			m.app.log.Warn("a file is not taken, fabric-node recv does that", "from", s.From, "name", s.Name)
		}
	})
}

// elect stands for the election again and again, and reports who leads.
func (m *member) elect(name string) {
	e, err := election.New(m.node, election.Config{Name: name, Logger: m.app.log})
	if err != nil {
		m.fail(err)
		return
	}
	m.leaders(name, e)
	m.work.Go(func() {
		m.fail(e.Lead(m.ctx, func(ctx context.Context, _ *election.Term) error {
			<-ctx.Done()
			return nil
		}))
	})
}

func (m *member) leaders(name string, e *election.Election) {
	m.work.Go(func() {
		for l, err := range e.Leaders(m.ctx) {
			if err != nil {
				m.fail(err)
				return
			}
			m.emit(newLeaderEvent(name, l))
		}
	})
}

// balance joins the group. Its last report, without an index, comes while leaving.
func (m *member) balance(workers int) {
	m.work.Go(func() {
		g, err := balance.Join(m.ctx, m.node, balance.Config{
			Group: m.app.opts.group, Workers: workers, Logger: m.app.log,
			OnChange: func(s balance.Share) { m.emit(newBalancedEvent(s)) },
		})
		if err != nil {
			m.fail(err)
			return
		}
		select {
		case <-m.ctx.Done():
		case <-g.Context().Done():
			m.fail(context.Cause(g.Context()))
		}
	})
}

// drain waits until everything that waited in the inbox has been reported: it sends
// itself a message, behind which nobody else's counts.
func (m *member) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.app.opts.timeout)
	defer cancel()
	if err := m.node.Send(ctx, m.node.PID(), []byte(m.lastMessage)); err != nil {
		m.app.log.Debug("messages may be dropped", "err", err)
		return
	}
	select {
	case <-m.lastRead:
	case <-ctx.Done():
	}
}

// wait returns when the member has ended and left.
func (m *member) wait(ctx context.Context) error {
	select {
	case <-m.ctx.Done():
	case <-m.node.Context().Done():
		m.cancel(context.Cause(m.node.Context()))
	}
	cause := context.Cause(m.ctx)
	m.cancel(nil)
	m.work.Wait()
	if m.reading {
		m.drain(ctx)
	}
	m.stopReading()
	m.read.Wait()
	held := m.node.Incarnation() != 0
	if !held {
		m.patience = min(m.patience, lostPatience)
	}
	err := m.app.leave(ctx, m.node, m.patience)
	if !held {
		err = nil // there was nothing to give back: the others know already
	}
	if err == nil {
		err = m.out.emit(nodeEvent{Type: "left", PID: m.node.PID()})
	}
	if ctx.Err() != nil || errors.Is(cause, errDone) {
		return err // asked to stop: the way such a process is meant to end
	}
	return cause
}
