package fabric

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// The wire, version 1. A number on it is 1 to 2^64-1, to the base 62, of 0-9 A-Z a-z in
// this order, and has no leading zero.
//
// A message is its user's bytes, unchanged, and what the fabric has to say about
// it stands in two subjects: the one it is published to (subject.go) and its reply
// subject, which doubles as the address for the answer and for the server's 503.
//
//	message        published to          with the reply subject
//	send           P.u.<to>.<from>       P.r.<from>.<to>.s<nonce><type>.<n>
//	request        P.u.<to>.<from>       P.r.<from>.<to>.q<nonce><type>.<n>-<secret>
//	acked          P.u.<to>.<from>       P.r.<from>.<to>.c<nonce><type>.<n>-<secret>
//	acked, handled P.u.<to>.<from>       P.r.<from>.<to>.h<nonce><type>.<n>-<secret>
//	broadcast      P.b.<from>            P.r.<from>._.b<nonce><type>.<n>
//	to a topic     P.g.<topic>.<from>    P.r.<from>._.b<nonce><type>.<n>
//	query          P.b. or P.g. as above P.r.<from>._.q<nonce><type>.<n>-<secret>
//	anycast        P.q.<service>.<from>  P.r.<from>._.q<nonce><type>.<n>-<secret>
//	signal         P.y.<kind>.<from>     P.r.<from>._.y<nonce>.<n>
//	several sends  P.u.<to>.<from>       P.r.<from>.<to>.m<nonce>.<n>-<steps>    payload: a frame (frame.go)
//	  broadcasts   P.b.<from>            P.r.<from>._.m<nonce>.<n>-<steps>
//	several asks   P.u.<to>.<from>       P.r.<from>.<to>.g<nonce>.<n>-<secret>   payload: a frame
//	linked         P.u.<to>.<from>       P.r.<from>.<to>.r<nonce><type>.<n>-<link>-<seq>
//	several, or parts                    P.r.<from>.<to>.l<nonce>.<seq>-<link>   payload: a frame
//	a part by itself                     P.r.<from>.<to>.+<nonce>.<seq>-<link>-<sum>
//	probe                                P.r.<from>.<to>.p<nonce>.<base>-<link>-<number>
//	durable        P.d.<to>.<from>       P.r.<from>.<to>.d<nonce>.<n>-<secret>
//
//	answer         P.r.<sender>.<me>.a<nonce><type>.<n>-<secret>   payload: the answer
//	acknowledged   P.r.<sender>.<me>.k<nonce>.<n>-<secret>         empty
//	handler error  P.r.<sender>.<me>.e<nonce><code>.<n>-<secret>   payload: its text
//	inbox full     P.r.<sender>.<me>.i<nonce>.<n>-<secret>         empty
//	several of these four  P.r.<sender>.<me>.g<nonce>.<n>-<secret>  payload: a frame
//	full, no call  P.r.<sender>.<me>.n<nonce>.<n>                  more n, as uvarints
//	state of link  P.r.<sender>.<me>.w<nonce>.1-<link>             a window.State (link.go)
//	no such link   P.r.<sender>.<me>.x<nonce>.1-<link>             empty
//	flush marker   P.r.<me>.<me>.f<nonce>.<n>-<secret>             empty
//	stored         P.r.<me>.<to>.d<nonce>.<n>-<secret>             JetStream's acknowledgement
//
//	tag     = kind nonce [type]
//	kind    = one letter, or "+", of the table above; a digit is left to a later version
//	nonce   = 6 of 0-9 A-Z a-z, drawn at random by each courier
//	type    = up to 16 of 0-9 A-Z a-z: Message.Type; of an error, RemoteError.Code
//	n       = Message.ID
//	steps   = from n to the other ids (frame.go)
//	link    = a secret, drawn by the sender for each link, which knows it by no other name
//	seq     = the number of the (first) message on its link: 1, 2, 3 and so on
//	sum     = 1 more than the CRC-32C of the message so far (frame.go)
//	secret  = 10 of 0-9 A-Z a-z, drawn at random for each request and marker; of several
//	          requests or messages to be acknowledged (asks), or answers, n and secret are
//	          those of the first, and the frame has those of each; of durable messages, those
//	          of the first that was acknowledged at that address, one at a time (posting.go)
//
// With a header, the message is NATS's HPUB with the user's keys and no other.
//
// What a receiver insists on, or it drops the message and counts it (Stats.Invalid):
// the two subjects name the same sender, and itself (or "_") as the receiver; the
// kind fits the class; no header of JetStream's or status of
// the server's. JetStream's own messages (acknowledgements of a publish, deliveries
// of a consumer, direct gets) can be aimed at any subject and skip permissions; they carry no tag.
//
// Class r is accepted only with the courier's own nonce and, where somebody waits,
// for an outstanding n with its secret from the process that was asked; to a query,
// and to an anycast, anybody may answer who learned its secret, each in its own name. An
// answer is published to an address rebuilt from the parsed parts under the answerer's
// own PID, never to the reply subject as received. That a send found the inbox full
// has no secret, as the send has none: it can be made up by who was sent to only.
//
// A durable message is kept by a stream, which keeps no reply subject. What it has to
// say about itself stands in a header that the server looks at, too:
//
//	Nats-Msg-Id: <from>.d<nonce><type>.<n>-<mac>
//
// The server stores no second message of an id that it knows, whoever sends it to
// whomever. So an id that can be foreseen is one under which another process may send
// first, and have the message taken for a repetition and dropped. The mac, 10 of
// 0-9 A-Z a-z, is drawn at random; if the caller chose n, so that the id is to be the same
// again, it is one that only the sender's courier can compute, of the receiver and n.
// A receiver insists that the subject and the id name the same sender, and parks what
// is not so.
//
// The messages without a tag are P.u.<to>.ext, P.d.<to>.ext and P.q.<service>.ext,
// published by a plain NATS client: they arrive From ext; with a reply address that begins with
// _INBOX. they are requests.
const wireVersion = "1"

// A kind says what a message is, as one letter of its tag.
type kind byte

const (
	kindSend      kind = 's'
	kindRequest   kind = 'q'
	kindBroadcast kind = 'b'
	kindSignal    kind = 'y'
	kindAnswer    kind = 'a'
	kindError     kind = 'e'
	kindFull      kind = 'i'
	kindFlush     kind = 'f'
	kindAccept    kind = 'c' // a message whose acceptance into the inbox is acknowledged
	kindHandle    kind = 'h' // one that is acknowledged when it has been handled
	kindAck       kind = 'k'
	kindNack      kind = 'n' // the inbox was full for a message that awaits nothing
	kindMulti     kind = 'm' // several sends, or broadcasts
	kindGathered  kind = 'g' // several requests and messages to be acknowledged, or several answers
	kindLinked    kind = 'r' // one message of a link
	kindLink      kind = 'l' // several messages of a link
	kindProbe     kind = 'p'
	kindState     kind = 'w'
	kindNoLink    kind = 'x'
	kindMail      kind = 'd'
)

const (
	// Every byte of a reply subject takes a four-hundredth of what a message of 1 KiB
	// costs: it is parsed four times and copied as often. So the version is not written
	// out, and numbers are to the base 62.
	nonceLen  = 6 // 62^6 is 2^35
	secretLen = 10
	tagLen    = 1 + nonceLen
	// MaxType bounds [Message].Type, in bytes.
	MaxType = 16
)

// secret reports whether messages of kind k carry one.
func (k kind) secret() bool {
	switch k {
	case kindRequest, kindAccept, kindHandle, kindAnswer, kindAck, kindError, kindFull, kindFlush,
		kindGathered, kindLinked, kindLink, kindPart, kindProbe, kindState, kindNoLink, kindMail:
		return true
	}
	return false
}

// awaits reports whether the sender of a message of kind k awaits something of its
// receiver.
func (k kind) awaits() bool { return k == kindRequest || k == kindAccept || k == kindHandle }

// fits reports whether messages of kind k may be published in a class other than r.
func (k kind) fits(class string) bool {
	switch class {
	case classPeer:
		return k == kindSend || k.awaits() || k == kindMulti || k == kindGathered || k == kindLinked || k == kindLink || k == kindPart || k == kindProbe
	case classCast, classTopic:
		return k == kindBroadcast || k == kindRequest || k == kindMulti
	case classQueue:
		return k == kindRequest
	case classSignal:
		return k == kindSignal
	}
	return false
}

func (k kind) known() bool {
	return k == kindSend || k == kindBroadcast || k == kindSignal || k == kindNack || k == kindMulti || k.secret()
}

// counted reports whether a number follows the secret of kind k.
func (k kind) counted() bool { return k == kindLinked || k == kindPart || k == kindProbe }

// A tag is the parsed end of an address in class r: the tag and the id.
type tag struct {
	kind   kind
	nonce  string
	typ    string
	id     uint64
	secret string // of kinds that have one, otherwise empty
	seq    uint64 // of kinds that are counted
	steps  string // of kindMulti
}

// parseTag parses "<tag>.<id>". It accepts exactly what tag.append produces.
func parseTag(s string) (t tag, ok bool) {
	if len(s) <= tagLen+1 {
		return tag{}, false
	}
	dot := tagLen + strings.IndexByte(s[tagLen:], '.')
	if dot < tagLen || dot > tagLen+MaxType {
		return tag{}, false
	}
	t = tag{kind: kind(s[0]), nonce: s[1:tagLen], typ: s[tagLen:dot]}
	if !t.kind.known() || !isBase62(t.nonce) || !isBase62(t.typ) {
		return tag{}, false
	}
	n, rest, more := strings.Cut(s[dot+1:], "-")
	if t.id, ok = parseID(n); !ok || more != (t.kind.secret() || t.kind == kindMulti) {
		return tag{}, false
	}
	switch {
	case t.kind == kindMulti:
		if t.steps = rest; strings.Trim(rest, base62+":_") != "" { // eachID reads them
			return tag{}, false
		}
	case t.kind.secret():
		if t.secret, rest, more = strings.Cut(rest, "-"); len(t.secret) != secretLen || !isBase62(t.secret) {
			return tag{}, false
		}
		if more != t.kind.counted() {
			return tag{}, false
		}
		if more {
			t.seq, ok = parseID(rest)
		}
	}
	return t, ok
}

// append appends t as it stands on the wire.
func (t tag) append(b []byte) []byte {
	b = append(b, byte(t.kind))
	b = append(b, t.nonce...)
	b = append(b, t.typ...)
	b = append(b, '.')
	b = appendID(b, t.id)
	switch {
	case t.kind == kindMulti:
		b = append(b, '-')
		b = append(b, t.steps...)
	case t.kind.secret():
		b = append(b, '-')
		b = append(b, t.secret...)
	}
	if t.kind.counted() {
		b = append(b, '-')
		b = appendID(b, t.seq)
	}
	return b
}

// maxIDLen is the length of the greatest id.
const maxIDLen = 11

// appendID appends an id to the base 62.
func appendID(b []byte, id uint64) []byte {
	var digits [maxIDLen]byte
	i := len(digits)
	for {
		i--
		digits[i] = base62[id%62]
		if id /= 62; id == 0 {
			return append(b, digits[i:]...)
		}
	}
}

// parseID parses an id in the one form that appendID gives it; 0 is none.
func parseID(s string) (uint64, bool) {
	if s == "" || s[0] == '0' || len(s) > maxIDLen {
		return 0, false
	}
	n := uint64(0)
	for i := range len(s) {
		d := uint64(digitOf[s[i]])
		if d == noDigit {
			return 0, false
		}
		if i == maxIDLen-1 && n > (math.MaxUint64-d)/62 {
			return 0, false
		}
		n = n*62 + d
	}
	return n, true
}

const noDigit = 62

// digitOf is the value of each byte to the base 62, or noDigit.
var digitOf = func() (of [256]uint8) {
	for b := range of {
		of[b] = noDigit
		if d := strings.IndexByte(base62, byte(b)); d >= 0 {
			of[b] = uint8(d)
		}
	}
	return of
}()

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func isBase62(s string) bool {
	for i := range len(s) {
		if digitOf[s[i]] == noDigit {
			return false
		}
	}
	return true
}

// random returns n characters of base62 that nobody can guess.
func random(n int) string {
	var out, in [16]byte
	for i := 0; i < n; {
		_, _ = rand.Read(in[:]) // never fails (crypto/rand)
		for _, b := range in {
			// 248 is 4*62: the bytes above would make some characters likelier.
			if b < 248 && i < n {
				out[i] = base62[b%62]
				i++
			}
		}
	}
	return string(out[:n])
}

// Headers that only the server or JetStream sets.
const (
	headerStatus      = "Status"
	headerDescription = "Description"
	headerStream      = "Nats-Stream"
	headerSequence    = "Nats-Sequence"
	headerSubject     = "Nats-Subject"
)

// isForeign reports whether a header shows that the message was made by the
// server and not by a process: a status line, or where JetStream has it from.
func isForeign(h nats.Header) bool {
	if len(h) == 0 {
		return false
	}
	for _, key := range [...]string{headerStatus, headerStream, headerSequence, headerSubject} {
		if _, ok := h[key]; ok {
			return true
		}
	}
	return false
}

// isNoResponders reports whether m is the server's word that nobody subscribes.
func isNoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && len(m.Header) != 0 && m.Header.Get(headerStatus) == "503"
}

// checkType refuses what a tag cannot hold.
func checkType(typ string) error {
	if len(typ) > MaxType {
		return &NameError{Field: "type", Name: typ, Reason: "it is longer than " + strconv.Itoa(MaxType) + " bytes"}
	}
	if !isBase62(typ) {
		return &NameError{Field: "type", Name: typ, Reason: "allowed are letters and digits of ASCII"}
	}
	return nil
}

// checkHeader refuses the keys that a message may not have: those of NATS and the
// fabric, those that read as the server's status line once received, and those
// that are not one visible word.
func checkHeader(h nats.Header) error {
	for key := range h {
		if reason := badKey(key); reason != "" {
			return &NameError{Field: "header key", Name: key, Reason: reason}
		}
	}
	return nil
}

func badKey(key string) string {
	if key == "" {
		return "it is empty"
	}
	for _, prefix := range [...]string{"Nats-", "Fab-"} {
		if len(key) >= len(prefix) && strings.EqualFold(key[:len(prefix)], prefix) {
			return "keys that begin with " + prefix + " are reserved"
		}
	}
	if strings.EqualFold(key, headerStatus) || strings.EqualFold(key, headerDescription) {
		return "it is the name of NATS's status line"
	}
	for i := range len(key) {
		if c := key[i]; c <= ' ' || c >= 0x7f || c == ':' {
			return "byte " + strconv.Itoa(i+1) + " is " + strconv.QuoteRune(rune(c)) + "; allowed is visible ASCII without ':'"
		}
	}
	return ""
}

// natsError puts the fabric's category before an error of nats.go's publish.
func natsError(err error) error {
	if _, ok := errors.AsType[net.Error](err); ok {
		return fmt.Errorf("%w: %w", ErrDisconnected, err) // the write failed
	}
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, io.ErrClosedPipe):
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining),
		errors.Is(err, nats.ErrInvalidConnection):
		return fmt.Errorf("%w: %w: %w", ErrClosed, ErrConnClosed, err)
	}
	return err
}
