package fabric

import (
	"strings"

	"github.com/natsfabric/natsfabric/internal/token"
)

// The subjects of a fabric, P being fab.<cluster>.<env>. The last token of every
// subject that a node publishes to, but for class r, is its own PID, so the
// server's permissions can make the sender unforgeable.
//
//	class  publish to                     subscribe to   for
//	u      P.u.<to>.<from>                P.u.<me>.*     point to point
//	b      P.b.<from>                     P.b.*          broadcast
//	g      P.g.<topic>.<from>             P.g.<topic>.*  topics
//	q      P.q.<service>.<from>           P.q.<service>.* in the queue group fab.<cluster>.<env>: anycast
//	s      P.s.<to>.<from>.<stream>       P.s.<me>.*.*   chunks of streams
//	y      P.y.<kind>.<from>              P.y.<kind>.*   the fabric's own signals
//	r      P.r.<to>.<from>.<tag>.<id>     P.r.<me>.>     answers, the server's 503 (wire.go)
//	d      P.d.<to>.<from>                (a stream)     durable messages
//	dead   P.dead.<from>.<to>             (a stream)     those that <to> could not handle
//	kv     (the bucket's RePublish)       P.kv.>         changes of the bucket
//	i      (the server)                   P.i.<me>.>     answers to requests of nats.go, and of the mail stream's on a second connection
const (
	classPeer   = "u."
	classCast   = "b."
	classSignal = "y."
	classReply  = "r."
	classTopic  = "g."
	classQueue  = "q."
	classChunk  = "s."
	classMail   = "d."
	classDead   = "dead."
	classInbox  = "i."
	classFeed   = "kv"
)

// nobody stands in a reply subject where the receiver's PID would, when the
// message is for everyone. It is no legal name.
const nobody PID = "_"

// inboxPrefix begins the addresses at which plain NATS clients await answers.
const inboxPrefix = "_INBOX."

// subjects builds and parses every subject of one fabric, as seen by one node.
// The names it is made of, and all PIDs handed to its builders, were checked with
// internal/token where they entered the process; what its parsers are given comes
// from the network and may be anything.
type subjects struct {
	prefix string // "fab.<cluster>.<env>."
	me     PID
	toMe   string // "P.u.<me>."
	cast   string // "P.b."
	topics string // "P.g."
	queues string // "P.q."
	atMe   string // "P.r.<me>."
}

func newSubjects(cluster, env string, me PID) subjects {
	p := "fab." + cluster + "." + env + "."
	return subjects{
		prefix: p,
		me:     me,
		toMe:   p + classPeer + string(me) + ".",
		cast:   p + classCast,
		topics: p + classTopic,
		queues: p + classQueue,
		atMe:   p + classReply + string(me) + ".",
	}
}

// peer is where this node publishes messages to the process to.
func (s subjects) peer(to PID) string { return s.prefix + classPeer + string(to) + "." + string(s.me) }

// peerAll matches every message to this node.
func (s subjects) peerAll() string { return s.toMe + "*" }

// everyone is where this node publishes broadcasts.
func (s subjects) everyone() string { return s.cast + string(s.me) }

// castAll matches every broadcast.
func (s subjects) castAll() string { return s.cast + "*" }

// topic is where this node publishes to a topic.
func (s subjects) topic(name string) string { return s.topics + name + "." + string(s.me) }

// topicAll matches everything that is published to a topic.
func (s subjects) topicAll(name string) string { return s.topics + name + ".*" }

// service is where this node publishes requests to whoever serves a service.
func (s subjects) service(name string) string { return s.queues + name + "." + string(s.me) }

// serviceAll matches every request to a service, of which each goes to one of the
// queue group.
func (s subjects) serviceAll(name string) string { return s.queues + name + ".*" }

// group is the queue group of those who serve a service: the same for all services, so
// that the server's permissions can name it whatever a service is called. In another
// group, or in none, a subscription would be a copy of every request.
func (s subjects) group() string { return strings.TrimSuffix(s.prefix, ".") }

// signal is where this node publishes signals of a kind.
func (s subjects) signal(kind string) string {
	return s.prefix + classSignal + kind + "." + string(s.me)
}

// signalAll matches every signal of a kind.
func (s subjects) signalAll(kind string) string { return s.prefix + classSignal + kind + ".*" }

// reply begins every address in class r at which the process at hears from the
// process from; a tag and an id complete it.
func (s subjects) reply(at, from PID) string {
	return s.prefix + classReply + string(at) + "." + string(from) + "."
}

// replyAll matches everything in class r for this node.
func (s subjects) replyAll() string { return s.atMe + ">" }

// feed is the token under which the bucket's changes are republished.
func (s subjects) feed() string { return s.prefix + classFeed }

// chunk is where this node publishes the parts of a stream to the process to.
func (s subjects) chunk(to PID, stream string) string {
	return s.prefix + classChunk + string(to) + "." + string(s.me) + "." + stream
}

// chunkAll matches the parts of all streams to this node.
func (s subjects) chunkAll() string { return s.prefix + classChunk + string(s.me) + ".*.*" }

// mail is where this node publishes to the durable mailbox of the process to.
func (s subjects) mail(to PID) string { return s.prefix + classMail + string(to) + "." + string(s.me) }

// inbox is the prefix of the addresses at which this node's connection awaits
// answers of the server. Its own, so that no other process may listen there.
func (s subjects) inbox() string { return s.prefix + classInbox + string(s.me) }

// parsePeer returns who published to subject, one that peerAll matched.
func (s subjects) parsePeer(subject string) (from PID, ok bool) {
	return tokenPID(strings.CutPrefix(subject, s.toMe))
}

// parseCast returns who published to subject, one that castAll matched.
func (s subjects) parseCast(subject string) (from PID, ok bool) {
	return tokenPID(strings.CutPrefix(subject, s.cast))
}

// parseTopic returns the topic of subject, one that topicAll matched, and who
// published to it.
func (s subjects) parseTopic(subject string) (topic string, from PID, ok bool) {
	return named(strings.CutPrefix(subject, s.topics))
}

// parseService returns the service of subject, one that serviceAll matched, and who
// published to it.
func (s subjects) parseService(subject string) (service string, from PID, ok bool) {
	return named(strings.CutPrefix(subject, s.queues))
}

// named parses "<name>.<from>".
func named(rest string, ok bool) (name string, from PID, _ bool) {
	if !ok {
		return "", "", false
	}
	name, rest, ok = strings.Cut(rest, ".")
	if from, ok = tokenPID(rest, ok); !ok || token.Check("name", name) != nil {
		return "", "", false
	}
	return name, from, true
}

// parseSignal returns who published to subject, one that signalAll(kind) matched.
func (s subjects) parseSignal(kind, subject string) (from PID, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix+classSignal)
	if !ok {
		return "", false
	}
	rest, ok = strings.CutPrefix(rest, kind+".")
	return tokenPID(rest, ok)
}

// parseReply returns who speaks in a subject that replyAll matched, [nobody]
// included, and the tag and id that end it.
func (s subjects) parseReply(subject string) (from PID, rest string, ok bool) {
	rest, ok = strings.CutPrefix(subject, s.atMe)
	if !ok {
		return "", "", false
	}
	name, rest, ok := strings.Cut(rest, ".")
	if !ok || name != string(nobody) && token.Check("pid", name) != nil {
		return "", "", false
	}
	return PID(name), rest, true
}

// cutReply removes from the reply subject of a received message what must begin
// it: class r, the PID from as the one who is to hear, the PID to as the one who is to
// speak. What remains is the tag and id. Anything else is refused, however
// similar: a reply subject is where the answer would be published with our rights.
func (s subjects) cutReply(reply string, from, to PID) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(reply, s.prefix+classReply)
	if !ok {
		return "", false
	}
	for _, name := range [...]PID{from, to} {
		if rest, ok = strings.CutPrefix(rest, string(name)); !ok {
			return "", false
		}
		if rest, ok = strings.CutPrefix(rest, "."); !ok {
			return "", false
		}
	}
	return rest, true
}

// peerOf returns the receiver in a subject that peer built; ok is false for any
// other subject.
func (s subjects) peerOf(subject string) (to PID, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix+classPeer)
	if !ok {
		return "", false
	}
	return tokenPID(strings.CutSuffix(rest, "."+string(s.me)))
}

// target returns for whom this node publishes to subject: one process, [Everyone],
// also of a topic, or [nobody] in particular, who serves service. ok is false for
// any other subject.
func (s subjects) target(subject string) (to PID, service string, ok bool) {
	if to, ok = s.peerOf(subject); ok {
		return to, "", true
	}
	if from, ok := s.parseCast(subject); ok && from == s.me {
		return Everyone, "", true
	}
	if _, from, ok := s.parseTopic(subject); ok && from == s.me {
		return Everyone, "", true
	}
	service, from, ok := s.parseService(subject)
	return nobody, service, ok && from == s.me
}

// mailTo matches every durable message to a process; mailAll, every one.
func (s subjects) mailTo(to PID) string { return s.prefix + classMail + string(to) + ".*" }
func (s subjects) mailAll() string      { return s.prefix + classMail + "*.*" }

// dead is where this node parks a durable message of from, or of [nobody].
func (s subjects) dead(from PID) string {
	return s.prefix + classDead + string(from) + "." + string(s.me)
}

// deadAll matches every parked message.
func (s subjects) deadAll() string { return s.prefix + classDead + "*.*" }

// parseMail returns between whom the durable message on a subject is, and parseDead
// between whom a parked one was.
func (s subjects) parseMail(subject string) (to, from PID, ok bool) {
	return parsePair(strings.CutPrefix(subject, s.prefix+classMail))
}

func (s subjects) parseDead(subject string) (from, to PID, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix+classDead+string(nobody)+".")
	if ok {
		to, ok = tokenPID(rest, true)
		return nobody, to, ok
	}
	return parsePair(strings.CutPrefix(subject, s.prefix+classDead))
}

func parsePair(rest string, ok bool) (a, b PID, _ bool) {
	first, second, two := strings.Cut(rest, ".")
	a, okA := tokenPID(first, ok && two)
	b, okB := tokenPID(second, ok && two)
	return a, b, okA && okB
}

// tokenPID returns name as a PID if it is one token and a legal name.
func tokenPID(name string, ok bool) (PID, bool) {
	if !ok || token.Check("pid", name) != nil {
		return "", false
	}
	return PID(name), true
}

// isInboxAddress reports whether reply is an address at which a plain NATS client
// awaits an answer: _INBOX. and tokens without wildcards.
func isInboxAddress(reply string) bool {
	rest, ok := strings.CutPrefix(reply, inboxPrefix)
	if !ok || len(reply) > maxInboxAddress {
		return false
	}
	for name := range strings.SplitSeq(rest, ".") {
		if name == "" || strings.ContainsAny(name, "*> \t\r\n") {
			return false
		}
	}
	return true
}

// maxInboxAddress bounds what is kept of a stranger's reply address.
const maxInboxAddress = 512
