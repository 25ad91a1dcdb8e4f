package election

import (
	"encoding/json"
	"errors"
	"sync"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// An office is how the elections of one node talk to those of others: one
// subscription, whatever their number. What it says and hears decides nothing. Who
// leads is in the bucket; the office is about who comes next, and costs nothing while
// nobody comes or goes.
//
// A candidate tells the leader that it stands. The leader keeps the queue of those
// who do and tells the first [standbys] of them their rank, and the others that they
// are none of those. So when the leader is gone a few compete for the claim, one
// after the other, and not everyone at once.
type office struct {
	host *roster.Host
	me   string

	mu     sync.Mutex // guards the fields below
	chairs map[string]*chair
	stands map[string]*stand
	asked  map[string]chan<- error // refusals of what this node asked for, by id
}

// A memo is what one office says to another.
type memo struct {
	Op       string `json:"op"`
	Name     string `json:"name"` // of the election
	Token    uint64 `json:"token,omitempty"`
	Inc      uint64 `json:"inc,omitempty"` // of who stands
	Priority int    `json:"priority,omitempty"`
	Preempt  bool   `json:"preempt,omitempty"`
	Rank     int    `json:"rank,omitempty"`
	Of       int    `json:"of,omitempty"`
	To       string `json:"to,omitempty"`
	ID       string `json:"id,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

const (
	opStand    = "stand"    // candidate to leader: I stand
	opWithdraw = "withdraw" // candidate to leader: no longer
	opRank     = "rank"     // leader to candidate: Rank of Of; from standbys on it is none
	opCall     = "call"     // leader to anyone: do you stand?
	opHandOver = "handover" // anyone to leader of term Token: hand over, to To or the first
	opResign   = "resign"   // anyone to leader of term Token: resign
	opRefuse   = "refuse"   // leader to who asked: no, because
)

// officeOf returns the node's office.
func officeOf(node *fabric.Node, host *roster.Host) (*office, error) {
	v, err := host.Session.Shared("election", func() (any, error) {
		o := &office{
			host: host, me: string(node.PID()),
			chairs: map[string]*chair{}, stands: map[string]*stand{}, asked: map[string]chan<- error{},
		}
		_, err := host.Signals.OnSignal(officeKind(o.me), o.hear) // until the node ends
		return o, err
	})
	if err != nil {
		return nil, err
	}
	return v.(*office), nil
}

// officeKind is the signal that the office of pid listens to.
func officeKind(pid string) string { return "elect-" + pid }

// tell sends m, which may get lost.
func (o *office) tell(pid string, m memo) {
	data, err := json.Marshal(m)
	if err == nil {
		err = o.host.Signals.Signal(officeKind(pid), data)
	}
	if err != nil {
		o.host.Logger.Debug("memo not sent", "to", pid, "op", m.Op, "election", m.Name, "err", err)
	}
}

// hear takes a memo. It must not block.
func (o *office) hear(from string, data []byte) {
	var m memo
	if err := json.Unmarshal(data, &m); err != nil {
		o.host.Logger.Debug("memo not understood", "from", from, "err", err)
		return
	}
	o.mu.Lock()
	c, s, refused := o.chairs[m.Name], o.stands[m.Name], o.asked[m.ID]
	if m.Op == opStand && c == nil && s != nil {
		s.early[from] = m // the bucket says that this node leads, and it is about to
	}
	if m.Op == opWithdraw && s != nil {
		delete(s.early, from)
	}
	o.mu.Unlock()
	switch m.Op {
	case opStand:
		if c != nil {
			c.enter(from, m)
		}
	case opWithdraw:
		if c != nil {
			c.remove(from)
		}
	case opRank:
		if s != nil {
			s.ranked(m)
		}
	case opCall:
		if s != nil && s.cfg.Get().Name != "" { // one that only tries does not stand
			o.tell(from, s.memo())
		}
	case opHandOver, opResign:
		if err := o.obey(m); err != nil {
			o.tell(from, memo{Op: opRefuse, Name: m.Name, ID: m.ID, Reason: err.Error()})
		}
	case opRefuse:
		if refused != nil {
			select {
			case refused <- refusal(m.Reason):
			default: // there is one already
			}
		}
	}
}

// obey asks the term that m names, of this node, to end. It returns why it does not.
func (o *office) obey(m memo) error {
	o.mu.Lock()
	c := o.chairs[m.Name]
	o.mu.Unlock()
	switch {
	case c == nil || c.term.Token() != m.Token:
		return ErrNoLeader // it is another by now
	case m.Op == opResign:
		c.term.ask("")
		return nil
	case m.To == "":
		to, ok := c.first()
		if !ok {
			return ErrNoCandidate
		}
		c.term.ask(to)
		return nil
	case !c.has(m.To):
		o.tell(m.To, memo{Op: opCall, Name: m.Name}) // who asked will ask again
		return ErrNoCandidate
	}
	c.term.ask(m.To)
	return nil
}

// request sends m to the leader, which may be this node: a signal does not come back
// to who sent it.
func (o *office) request(pid string, m memo) {
	if pid != o.me {
		o.tell(pid, m)
		return
	}
	if err := o.obey(m); err != nil {
		data, _ := json.Marshal(memo{Op: opRefuse, Name: m.Name, ID: m.ID, Reason: err.Error()})
		o.hear(o.me, data)
	}
}

// await returns where the refusal of the request id comes in, until forget is called.
func (o *office) await(id string) (refused <-chan error, forget func()) {
	c := make(chan error, 1) // capacity 1: a second refusal says nothing new
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked[id] = c
	return c, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.asked, id)
	}
}

// refusal is the error that the reason of another office stands for.
func refusal(reason string) error {
	for _, err := range []error{ErrNoCandidate, ErrNoLeader} {
		if reason == err.Error() {
			return err
		}
	}
	return errors.New("election: refused: " + reason)
}

// preside opens the queue of a term, which is complete but for its chair.
func (o *office) preside(t *Term) *chair {
	c := &chair{o: o, term: t, queue: map[string]*standing{}}
	o.mu.Lock()
	o.chairs[t.e.cfg.Name] = c
	var early map[string]memo
	if s := o.stands[t.e.cfg.Name]; s != nil {
		early, s.early = s.early, map[string]memo{}
	}
	o.mu.Unlock()
	for pid, m := range early {
		c.enter(pid, m)
	}
	return c
}

// adjourn closes it.
func (o *office) adjourn(c *chair) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.chairs[c.term.e.cfg.Name] == c {
		delete(o.chairs, c.term.e.cfg.Name)
	}
}
