package roster

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
	"unsafe"
)

// An announcement goes to every follower, and one after a thousand joins carries a
// thousand members: JSON would cost each follower milliseconds, and a copy of every
// string. So it is a sequence of varints and of strings behind their length, and a
// decoded one shares the memory of the message.

// wireVersion begins every announcement. What begins otherwise is not understood,
// and the view is read instead.
const wireVersion = 4

var errWire = errors.New("not an announcement")

func (a announcement) encode() []byte {
	b := make([]byte, 0, 64+96*len(a.Set)+48*len(a.Gone))
	b = append(b, wireVersion)
	for _, n := range [...]uint64{a.Epoch, a.Prev, a.After, a.Token} {
		b = binary.AppendUvarint(b, n)
	}
	b = appendString(appendString(b, a.PID), a.Kind)
	b = binary.AppendUvarint(b, uint64(max(a.Units, 0)))
	b = binary.AppendUvarint(b, uint64(len(a.Set)))
	for _, m := range a.Set {
		b = appendString(b, m.PID)
		b = binary.AppendUvarint(b, m.Inc)
		b = appendString(b, m.Host)
		b = binary.AppendVarint(b, m.Since.UnixNano())
		b = binary.AppendUvarint(b, uint64(len(m.Meta)))
		for k, v := range m.Meta {
			b = appendString(appendString(b, k), v)
		}
		b = appendAsk(b, m.Ask)
		b = appendGiven(b, m.Given)
	}
	b = binary.AppendUvarint(b, uint64(len(a.Gone)))
	for _, d := range a.Gone {
		b = appendString(b, d.PID)
		b = binary.AppendUvarint(b, d.Inc)
		b = binary.AppendUvarint(append(b, flag(d.Failed, 1)|byte(d.By)<<1), uint64(max(d.Strikes, 0)))
	}
	b = binary.AppendUvarint(b, uint64(len(a.Suspects)))
	for pid, inc := range a.Suspects {
		b = binary.AppendUvarint(appendString(b, pid), inc)
	}
	return b
}

// Most members of a fabric ask for nothing, and most of a group were given nothing
// that has to be said: one byte each.
func appendAsk(b []byte, a Ask) []byte {
	if a == (Ask{}) {
		return append(b, 0)
	}
	b = append(b, 1|flag(a.Passive, 2)|flag(a.Idle, 4))
	b = binary.AppendUvarint(b, uint64(max(a.Workers, 0)))
	b = binary.AppendUvarint(b, uint64(max(a.Weight, 0)))
	b = binary.AppendUvarint(b, uint64(max(a.Parts, 0)))
	return binary.AppendUvarint(appendString(appendString(b, a.Zone), a.Kind), a.Stay)
}

func appendGiven(b []byte, g Given) []byte {
	if g == (Given{}) {
		return append(b, 0)
	}
	b = append(b, 1|flag(g.Away, 2)|flag(g.Refused, 4)|flag(g.Evicted, 8)|flag(g.Probation, 16))
	b = binary.AppendUvarint(appendString(appendString(b, g.Slots), g.Going), g.Mark)
	return binary.AppendUvarint(b, uint64(max(g.Strikes, 0)))
}

func flag(v bool, bit byte) byte {
	if v {
		return bit
	}
	return 0
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeAnnouncement reads what encode wrote. The strings are parts of data, which is not
// to change any more.
func decodeAnnouncement(data []byte) (a announcement, err error) {
	r := reader{data: data, text: unsafe.String(unsafe.SliceData(data), len(data))}
	if r.byte() != wireVersion {
		return a, errWire
	}
	a.Epoch, a.Prev, a.After, a.Token, a.PID = r.uint(), r.uint(), r.uint(), r.uint(), r.string()
	a.Kind, a.Units = r.string(), r.int32()
	if n := r.count(8); n > 0 {
		a.Set = make([]*Member, n)
	}
	var few []Member // share an allocation, and keep it
	for i := range a.Set {
		if len(few) == 0 {
			few = make([]Member, min(16, len(a.Set)-i))
		}
		m := &few[0]
		a.Set[i], few = m, few[1:]
		m.PID, m.Inc, m.Host, m.Since = r.string(), r.uint(), r.string(), time.Unix(0, r.int()).UTC()
		if n := r.count(2); n > 0 {
			m.Meta = make(map[string]string, n)
			for range n {
				k := r.string()
				m.Meta[k] = r.string()
			}
		}
		m.Ask, m.Given = r.ask(), r.given()
	}
	if n := r.count(4); n > 0 {
		a.Gone = make([]Departure, n)
	}
	for i := range a.Gone {
		d := &a.Gone[i]
		d.PID, d.Inc = r.string(), r.uint()
		how := r.byte()
		d.Failed, d.By, d.Strikes = how&1 != 0, Sign(how>>1), r.int32()
	}
	if n := r.count(2); n > 0 {
		a.Suspects = make(map[string]uint64, n)
		for range n {
			pid := r.string()
			a.Suspects[pid] = r.uint()
		}
	}
	if r.bad || len(r.data) > 0 || a.PID == "" {
		return announcement{}, errWire
	}
	return a, nil
}

func (r *reader) ask() (a Ask) {
	if flags := r.byte(); flags != 0 {
		a = Ask{Passive: flags&2 != 0, Idle: flags&4 != 0}
		a.Workers, a.Weight, a.Parts = r.int32(), r.int32(), r.int32()
		a.Zone, a.Kind, a.Stay = r.string(), r.string(), r.uint()
	}
	return a
}

func (r *reader) given() (g Given) {
	if flags := r.byte(); flags != 0 {
		g.Away, g.Refused, g.Evicted, g.Probation = flags&2 != 0, flags&4 != 0, flags&8 != 0, flags&16 != 0
		g.Slots, g.Going, g.Mark, g.Strikes = r.string(), r.string(), r.uint(), r.int32()
	}
	return g
}

// A reader takes values off data. After the first that is not there it is bad, and
// returns zeros.
type reader struct {
	data []byte
	text string // data as it was at first, as one string
	bad  bool
}

func (r *reader) take(n int) {
	if n <= 0 {
		r.bad, r.data = true, nil
		return
	}
	r.data = r.data[n:]
}

func (r *reader) byte() byte {
	if len(r.data) == 0 {
		r.take(0)
		return 0
	}
	b := r.data[0]
	r.take(1)
	return b
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.data)
	r.take(n)
	return v
}

// int32 returns a number that fits an int on every machine.
func (r *reader) int32() int { return int(min(r.uint(), math.MaxInt32)) }

func (r *reader) int() int64 {
	v, n := binary.Varint(r.data)
	r.take(n)
	return v
}

// count returns how many elements of at least size bytes follow: what is allocated
// for them is bounded by what has arrived.
func (r *reader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.data)/size) {
		r.take(0)
		return 0
	}
	return int(n)
}

func (r *reader) string() string {
	n := r.count(1)
	if n == 0 {
		return ""
	}
	at := len(r.text) - len(r.data)
	r.take(n)
	return r.text[at : at+n]
}
