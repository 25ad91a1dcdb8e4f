package fabric

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/nats-io/nats.go"
)

// A frame is the payload of one publish that carries several messages to one
// receiver, or one that cannot go bare: entries, one after the other.
//
//	entry  = kind flags type id [secret] [header] [total] data
//	kind   = one letter, as in a tag
//	flags  = one byte: header 1, more 2, crc 4
//	type   = a byte with its length, then the type
//	id     = uvarint
//	secret = as in a tag, if the kind has one
//	header = uvarint with the number of values, then key and value of each; if flagged
//	total  = uvarint, the size of the whole; of the first part of a message in parts,
//	         which is flagged more
//	data   = uvarint with its length, 4 bytes of CRC-32C if flagged, then the bytes
//
// A part that follows has kind "+" and nothing but data, and is flagged more unless it is
// the last. Each part has the CRC-32C of the message so far, the last that of the whole. One
// that is not the last may be published without a frame: its tag has the rest (lend.go).
const (
	kindPart kind = '+' // of a tag as well

	entryHeader = 1
	entryMore   = 2
	entryCRC    = 4
)

// An item is one entry of a frame, parsed. Its strings and bytes are parts of the
// frame.
type item struct {
	kind   kind
	more   bool
	hasCRC bool
	crc    uint32
	typ    string
	id     uint64
	secret string
	header nats.Header
	total  uint64
	data   []byte
}

// holds reports whether a frame whose tag is of kind k, in a class, may have it as an
// item. What a link's may have depends on what came before.
func (k kind) holds(it *item, class string) bool {
	switch {
	case k == kindLink:
		return true
	case it.more:
		return false
	case k == kindGathered && class == classReply:
		return it.kind.answers() && len(it.header) == 0
	case k == kindGathered:
		return it.kind.awaits()
	case class == classPeer:
		return it.kind == kindSend
	}
	return it.kind == kindBroadcast
}

// newFrame returns a frame of one item, which others may follow.
func newFrame(it *item) []byte {
	if len(it.data) < maxFrame {
		return appendItem(make([]byte, 0, len(it.data)+64), it)
	}
	if len(it.data) > maxChunk/2 {
		return appendItem(*largeFrames.Get().(*[]byte), it)
	}
	var head [256]byte
	// Join does not clear first what it fills, as make does.
	return bytes.Join([][]byte{appendHead(head[:0], it), it.data}, nil)
}

// most is how many bytes it takes at most in a frame, unless it has a header.
func (it *item) most() int {
	return 3 + len(it.typ) + 3*binary.MaxVarintLen64 + len(it.secret) + crc32.Size + len(it.data)
}

// appendItem appends it as it stands in a frame.
func appendItem(b []byte, it *item) []byte { return append(appendHead(b, it), it.data...) }

// appendHead appends what stands before the data of it.
func appendHead(b []byte, it *item) []byte {
	flags := byte(0)
	if len(it.header) > 0 {
		flags |= entryHeader
	}
	if it.more {
		flags |= entryMore
	}
	if it.hasCRC {
		flags |= entryCRC
	}
	b = append(b, byte(it.kind), flags)
	if it.kind != kindPart {
		b = append(b, byte(len(it.typ)))
		b = append(b, it.typ...)
		b = binary.AppendUvarint(b, it.id)
		if it.kind.secret() {
			b = append(b, it.secret...)
		}
		if len(it.header) > 0 {
			b = appendHeader(b, it.header)
		}
		if it.more {
			b = binary.AppendUvarint(b, it.total)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(it.data)))
	if it.hasCRC {
		b = binary.BigEndian.AppendUint32(b, it.crc)
	}
	return b
}

func appendHeader(b []byte, h nats.Header) []byte {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	b = binary.AppendUvarint(b, uint64(n))
	for key, values := range h {
		for _, v := range values {
			b = appendString(appendString(b, key), lineBreaks.Replace(v))
		}
	}
	return b
}

// lineBreaks makes of a header's value what arrives of it from NATS.
var lineBreaks = strings.NewReplacer("\r\n", " ", "\r", " ", "\n", " ")

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A frameReader cuts a frame into its items. It allocates no more than the frame
// has bytes, whatever those claim. It counts instead of cutting off what it has read:
// while the garbage collector runs, writing a pointer costs more than the rest.
type frameReader struct {
	b   []byte
	off int // of what is read
	bad bool
}

// left returns how many bytes there are still to read.
func (r *frameReader) left() int { return len(r.b) - r.off }

// next returns the next item; it is not ok at the end of the frame, or where it is
// malformed, as bad says then.
func (r *frameReader) next(it *item) bool {
	if r.left() == 0 || r.bad {
		return false
	}
	it.clear()
	it.kind = kind(r.byte())
	flags := r.byte()
	it.more, it.hasCRC = flags&entryMore != 0, flags&entryCRC != 0
	if flags&^(entryHeader|entryMore|entryCRC) != 0 {
		r.bad = true
	}
	if it.kind != kindPart {
		r.envelope(it, flags)
	} else if flags&entryHeader != 0 {
		r.bad = true
	}
	n := r.uvarint()
	if it.hasCRC {
		if c := r.take(4); c != nil {
			it.crc = binary.BigEndian.Uint32(c)
		}
	}
	it.data = r.take(n)
	return !r.bad
}

// clear makes it the zero item but for its data. Like a frameReader, it writes no pointer
// for nothing.
func (it *item) clear() {
	it.id, it.total, it.crc = 0, 0, 0
	if it.typ != "" {
		it.typ = ""
	}
	if it.secret != "" {
		it.secret = ""
	}
	if it.header != nil {
		it.header = nil
	}
}

func (r *frameReader) envelope(it *item, flags byte) {
	n := uint64(r.byte())
	if n > MaxType {
		r.bad = true
		return
	}
	if n > 0 {
		it.typ = string(r.take(n))
		r.bad = r.bad || !isBase62(it.typ)
	}
	it.id = r.uvarint()
	if it.kind.secret() {
		it.secret = string(r.take(secretLen))
		r.bad = r.bad || !isBase62(it.secret)
	}
	r.bad = r.bad || !it.kind.known() || it.id == 0
	if flags&entryHeader != 0 {
		it.header = r.header()
	}
	if it.more {
		it.total = r.uvarint()
	}
}

func (r *frameReader) header() nats.Header {
	n := r.uvarint()
	if r.bad || n == 0 || n > uint64(r.left())/2 {
		r.bad = true
		return nil
	}
	h := make(nats.Header)
	for range n {
		key, value := string(r.take(r.uvarint())), string(r.take(r.uvarint()))
		if r.bad || badKey(key) != "" || strings.ContainsAny(value, "\r\n") {
			r.bad = true
			return nil
		}
		h[key] = append(h[key], value)
	}
	return h
}

func (r *frameReader) byte() byte {
	if r.left() == 0 {
		r.bad = true
		return 0
	}
	r.off++
	return r.b[r.off-1]
}

func (r *frameReader) uvarint() uint64 {
	if c := r.off; c < len(r.b) && r.b[c] < 0x80 { // one byte, as most
		r.off++
		return uint64(r.b[c])
	}
	n, size := binary.Uvarint(r.b[r.off:])
	if size <= 0 {
		r.bad = true
		return 0
	}
	r.off += size
	return n
}

// take returns the next n bytes, nil if there are not so many.
func (r *frameReader) take(n uint64) []byte {
	if r.bad || n > uint64(r.left()) {
		r.bad = true
		return nil
	}
	b := r.b[r.off : r.off+int(n) : r.off+int(n)]
	r.off += int(n)
	return b
}

// The ids of the messages in a frame stand in its tag, so that the server's 503 names
// them all: the first, and the steps to the others, equal ones counted.
//
//	steps = step [":" times] ["_" steps], numbers both

// maxSteps bounds the text of the steps, and so the length of a subject.
const maxSteps = 180

// A series is a growing list of ids as a tag holds it.
type series struct {
	first, last uint64
	n           int
	text        []byte // of all but the open run
	step        uint64 // of the open run
	times       int
}

// add appends an id. It is refused if the text would become too long, or the ids do
// not rise.
func (s *series) add(id uint64) bool {
	switch {
	case s.n == 0:
		s.first = id
	case id <= s.last:
		return false
	case s.times > 0 && id-s.last == s.step:
		s.times++
	default:
		if len(s.text)+2*maxIDLen+len(":_") > maxSteps {
			return false
		}
		s.text = s.appendRun(s.text)
		s.step, s.times = id-s.last, 1
	}
	s.last = id
	s.n++
	return true
}

func (s *series) appendRun(b []byte) []byte {
	if s.times == 0 {
		return b
	}
	if len(b) > 0 {
		b = append(b, '_')
	}
	b = appendID(b, s.step)
	if s.times > 1 {
		b = appendID(append(b, ':'), uint64(s.times))
	}
	return b
}

// appendSteps appends the steps from the first id to the others.
func (s *series) appendSteps(b []byte) []byte {
	b = append(b, s.text...)
	if s.times > 0 && len(s.text) > 0 {
		b = append(b, '_')
	}
	run := series{step: s.step, times: s.times}
	return append(b, run.appendRun(nil)...)
}

// maxFrameItems bounds the messages of one frame.
const maxFrameItems = 4096

// eachID calls f with the ids that first and steps stand for. It is not ok if the
// steps are malformed, or too many.
func eachID(first uint64, steps string, f func(id uint64)) bool {
	f(first)
	id, n := first, 1
	for run := range strings.SplitSeq(steps, "_") {
		step, times, several := strings.Cut(run, ":")
		d, ok := parseID(step)
		k := uint64(1)
		if ok && several {
			k, ok = parseID(times)
		}
		if !ok || k > maxFrameItems || n+int(k) > maxFrameItems {
			return false
		}
		for range k {
			id += d
			f(id)
		}
		n += int(k)
	}
	return true
}
