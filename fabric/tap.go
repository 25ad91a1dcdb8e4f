package fabric

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Traffic is one message of a fabric, as [Node.Tap] sees it.
type Traffic struct {
	// Class is u (to one process), b (broadcasts), g (topics), q (anycasts), r
	// (answers, and what else goes back), y (the fabric's own signals) or kv (changes
	// of the bucket).
	Class string
	// Kind says in a word or two what it is: send, request, ack, ...
	Kind string
	// From is who published it, as far as its subject says. Empty in class kv.
	From PID
	// To is the receiver, [Everyone] in the classes b and g, empty if nobody in
	// particular.
	To PID
	// Name is the topic, the service, the kind of the signal, or the key in the bucket.
	Name string
	// ID and Type are the message's. In class kv, ID is the revision.
	ID   uint64
	Type string
	// Header and Data are as they arrived.
	Header nats.Header
	Data   []byte
	// Invalid is why its receivers drop it; empty if they do not.
	Invalid string
	// Missed is how many messages, a frame counting as one, were dropped since the last
	// Traffic because the reader was slow. They were newer than those that waited.
	Missed uint64
}

// tapCap is how many messages wait for a slow reader of Tap; those beyond are
// dropped, and counted.
const tapCap = 8192

// Tap iterates over what is published in a fabric in the given classes, from now on,
// until ctx ends, whose cause is then the last error, or the node closes. Messages
// that were sent several in a frame come one by one. Secrets are not shown, contents
// are; the bytes of streams are in none of the classes. Without classes, it takes b, g and kv. A passive node may tap.
//
// To the server, who listens is a receiver. So while somebody taps
//
//   - u: a send to a process that is not there is not reported, and a request to it
//     waits for its context instead of ending with [ErrNoPeer];
//   - q: an anycast that nobody serves waits likewise;
//   - g: a query to a topic that nobody has joined ends by its Silence or its context;
//   - y: a fabric that starts, or starts anew, while nobody else is connected takes one
//     lease longer.
//
// The others change nothing. Class u is for debugging; class r as well, which takes
// the permission to hear everyone's answers. What the server sends by itself, its 503,
// is not to be heard.
//
// It returns a [NameError] for a class that is none, a [PermissionError] if the
// server does not let this node listen, and the errors of [Node.JoinTopic].
func (n *Node) Tap(ctx context.Context, classes ...string) iter.Seq2[Traffic, error] {
	return func(yield func(Traffic, error) bool) {
		if err := n.courier.tap(ctx, classes, yield); err != nil {
			yield(Traffic{}, fmt.Errorf("tap: %w", err))
		}
	}
}

// tapped are the classes, and what to subscribe to in each.
var tapped = map[string]string{
	"u": classPeer + "*.*", "b": classCast + "*", "g": classTopic + "*.*", "q": classQueue + "*.*",
	"r": classReply + ">", "y": classSignal + "*.*", "kv": classFeed + ".>",
}

// isTap reports whether a subscription to subject is one of a tap.
func (s subjects) isTap(subject string) bool {
	rest, ok := strings.CutPrefix(subject, s.prefix)
	for _, tap := range tapped {
		if ok && rest == tap {
			return true
		}
	}
	return false
}

// tap returns the last error, unless the caller has left the loop.
func (c *courier) tap(ctx context.Context, classes []string, yield func(Traffic, error) bool) error {
	if len(classes) == 0 {
		classes = []string{"b", "g", "kv"}
	}
	if err := c.sendable(ctx); err != nil {
		return err
	}
	ch := make(chan *nats.Msg, tapCap)
	var subs []*nats.Subscription
	defer func() {
		for _, sub := range subs {
			_ = sub.Unsubscribe() // fails on a closed connection only
		}
	}()
	for _, class := range slices.Compact(slices.Sorted(slices.Values(classes))) {
		if tapped[class] == "" {
			return &NameError{Field: "class", Name: class, Reason: "it is none of u, b, g, q, r, y and kv"}
		}
		sub, err := c.nc.ChanSubscribe(c.subj.prefix+tapped[class], ch)
		if err != nil {
			return natsError(err)
		}
		subs = append(subs, sub)
	}
	for _, sub := range subs {
		if err := c.subscribed(ctx, sub.Subject); err != nil {
			return err
		}
	}
	told := uint64(0)
	for {
		var m *nats.Msg
		select {
		case m = <-ch:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.done:
			return ErrClosed
		}
		missed := -told
		for _, sub := range subs {
			missed += drops(sub)
		}
		told += missed
		for _, tr := range c.subj.traffic(m) {
			tr.Missed, missed = missed, 0
			if !yield(tr, nil) {
				return nil
			}
		}
	}
}

// kindNames are what Traffic.Kind says.
var kindNames = map[kind]string{
	kindSend: "send", kindRequest: "request", kindBroadcast: "broadcast", kindSignal: "signal",
	kindAnswer: "answer", kindError: "error", kindFull: "inbox full", kindFlush: "flush",
	kindAccept: "acked", kindHandle: "acked when handled", kindAck: "ack", kindNack: "inbox full",
	kindMulti: "frame", kindGathered: "frame", kindLinked: "send", kindLink: "frame of a link", kindProbe: "link probe",
	kindState: "link state", kindNoLink: "no such link", kindPart: "part",
}

// traffic returns what m is: one message, or those in its frame.
func (s subjects) traffic(m *nats.Msg) []Traffic {
	rest, _ := strings.CutPrefix(m.Subject, s.prefix)
	class, rest, _ := strings.Cut(rest, ".")
	tr := Traffic{Class: class, Header: m.Header, Data: m.Data}
	if class == classFeed {
		tr.Kind, tr.Name = "record", rest
		tr.ID, _ = strconv.ParseUint(m.Header.Get(headerSequence), 10, 64)
		return []Traffic{tr}
	}
	t, reason := s.envelope(&tr, rest, m.Reply)
	tr.Invalid = reason
	if reason == "" && isForeign(m.Header) {
		tr.Invalid = "it is made by the server"
	}
	if tr.Invalid != "" || t.kind == 0 {
		return []Traffic{tr}
	}
	tr.Kind, tr.ID, tr.Type = kindNames[t.kind], t.id, t.typ
	if t.kind != kindMulti && t.kind != kindGathered && t.kind != kindLink {
		return []Traffic{tr}
	}
	return tr.unpack(m.Data, t.kind)
}

// envelope fills in what the subjects say, and returns the tag, or why there is none.
// A plain client's message has none, and is valid.
func (s subjects) envelope(tr *Traffic, rest, reply string) (t tag, invalid string) {
	at, from := nobody, ""
	first, second, two := strings.Cut(rest, ".")
	switch class := tr.Class + "."; {
	case class == classCast && !two:
		tr.To, from = Everyone, first
	case class == classPeer && two:
		tr.To, at, from = PID(first), PID(first), second
	case class == classTopic && two:
		tr.To, tr.Name, from = Everyone, first, second
	case (class == classQueue || class == classSignal) && two:
		tr.Name, from = first, second
	case class == classReply && two:
		var end string
		from, end, _ = strings.Cut(second, ".")
		tr.To, tr.From = PID(first), PID(from)
		if t, two = parseTag(end); !two || tr.From != nobody && token.Check("pid", from) != nil {
			return tag{}, "its subject has no tag"
		}
		return t, ""
	default:
		return tag{}, "its subject has no place in the fabric"
	}
	tr.From = PID(from)
	if token.Check("pid", from) != nil {
		return tag{}, "its subject names no sender"
	}
	if class := tr.Class + "."; (class == classTopic || class == classQueue) && token.Check("name", first) != nil {
		return tag{}, "its subject names no topic or service"
	}
	if class := tr.Class + "."; tr.From == External && (class == classPeer || class == classQueue) {
		if tr.Kind = "external"; isInboxAddress(reply) {
			tr.Kind = "external request"
		}
		return tag{}, ""
	}
	end, ok := s.cutReply(reply, tr.From, at)
	if ok {
		t, ok = parseTag(end)
	}
	switch {
	case !ok:
		return tag{}, "its reply subject has no tag of its sender's"
	case !t.kind.fits(tr.Class + "."):
		return tag{}, "it is of a kind that does not belong there"
	}
	return t, ""
}

// unpack returns the messages in a frame of a kind, each as tr with what is its own.
func (tr Traffic) unpack(frame []byte, k kind) (all []Traffic) {
	r := frameReader{b: frame}
	for it := (item{}); r.next(&it); {
		if !k.holds(&it, tr.Class+".") {
			r.bad = true
			break
		}
		one := tr
		one.Kind, one.ID, one.Type, one.Header, one.Data = kindNames[it.kind], it.id, it.typ, it.header, it.data
		all = append(all, one)
	}
	if r.bad {
		tr.Invalid, tr.Data = "its frame is malformed", r.b[r.off:]
		all = append(all, tr)
	}
	return all
}
