package lease_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natsfabric/natsfabric/internal/lease"
)

// What happens to messages, each with its share of the storm's probability.

// strikes draws lots, and counts a fault of the kind.
func (s *simServer) strikes(share float64, kind string) bool {
	if s.storm == 0 || s.rand.Float64() >= s.storm*share {
		return false
	}
	s.faults[kind]++
	return true
}

// late returns how late something comes: by a little, which changes the order; or by
// more than its author waits, up to one and a half of the longest lease.
func (s *simServer) late() time.Duration {
	if s.rand.IntN(2) == 0 {
		return time.Duration(s.rand.Int64N(int64(300 * time.Millisecond)))
	}
	return time.Duration(s.rand.Int64N(int64(simLongest * 3 / 2)))
}

// transit brings a request to the stream, or not, or later, or twice.
func (s *simServer) transit(m message) {
	write := m.subject[0] == '$' && m.subject[1] == 'K'
	switch {
	case s.strikes(0.12, "request lost"):
	case s.strikes(0.15, "request late"):
		s.after(s.late(), func() { s.serve(m) })
	case s.strikes(0.12, "request repeated"):
		s.serve(m)
		s.after(s.late(), func() { s.serve(m) })
	case write && s.strikes(0.08, "busy"):
		s.reply(m.reply, apiFailure(400, 10164, "wrong last sequence"))
	case write && s.strikes(0.04, "unavailable"):
		s.reply(m.reply, apiFailure(503, 10008, "JetStream system temporarily unavailable"))
	case write && s.strikes(0.04, "unavailable, and applied"):
		s.serve(message{w: m.w, subject: m.subject, header: m.header, data: m.data})
		s.reply(m.reply, apiFailure(503, 10008, "JetStream system temporarily unavailable"))
	case write && s.strikes(0.03, "refused from the past"):
		s.reply(m.reply, wrongLast(1))
	default:
		s.serve(m)
	}
}

// reply brings an answer back, or not, or later, or twice.
func (s *simServer) reply(to string, data []byte) {
	if to == "" {
		return
	}
	switch {
	case s.strikes(0.12, "answer lost"):
	case s.strikes(0.15, "answer late"):
		s.after(s.late(), func() { s.route(to, nil, data) })
	case s.strikes(0.10, "answer repeated"):
		s.route(to, nil, data)
		s.after(s.late(), func() { s.route(to, nil, data) })
	default:
		s.route(to, nil, data)
	}
}

// feed repeats a change to who follows it, or not, or later, or twice.
func (s *simServer) feed(send func()) {
	switch {
	case s.strikes(0.25, "change lost"):
	case s.strikes(0.15, "change late"):
		s.after(s.late(), send)
	case s.strikes(0.10, "change repeated"):
		send()
		s.after(s.late(), send)
	default:
		send()
	}
}

// forge puts a message on the feed that the bucket does not hold: an old record again,
// or one that never was, from the past or from the future.
func (s *simServer) forge(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket
	if b == nil {
		return
	}
	if past := b.past[key]; len(past) > 0 && s.rand.IntN(2) == 0 {
		r := past[s.rand.IntN(len(past))]
		s.faults["old record on the feed"]++
		s.publish(key, r.seq, r.value)
		return
	}
	rev := b.read(key).seq + uint64(s.rand.IntN(3)) // as it is, or as it may be next
	if s.rand.IntN(2) == 0 {
		rev = b.last + 1 + uint64(s.rand.IntN(2))
	}
	var record any = lease.ClaimRecord{Key: key, State: "released", PID: "p0", Term: 70}
	switch pid := key[strings.LastIndex(key, ".")+1:]; {
	case strings.HasPrefix(key, "c.p."):
		record = lease.PIDRecord{Key: key, State: "dead", PID: pid}
	case strings.HasPrefix(key, "s."):
		record = lease.SessionRecord{Key: key, PID: pid, Inc: b.read(lease.KeyPID(pid)).seq, LeaseMS: 1}
	}
	data, err := json.Marshal(record)
	if err != nil {
		panic(err)
	}
	s.faults["forged record on the feed"]++
	s.publish(key, rev, data)
}

// foreign writes over a key what is no record.
func (s *simServer) foreign(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bucket == nil {
		return
	}
	s.faults["foreign record"]++
	garbage := []byte(`{"key":"somebody else's"}`)
	seq := s.bucket.store(key, simRecord{value: garbage, stored: time.Now()})
	s.publish(key, seq, garbage)
}

// vanish removes a record before its time. Of one key it does so once in two of the
// longest lease: what is assumed is that it does not happen twice in one.
func (s *simServer) vanish(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bucket == nil || s.bucket.read(key).seq == 0 || !s.truth.mayVanish(key) {
		return
	}
	s.faults["record vanished"]++
	s.bucket.forget(key, s.bucket.keys[key])
	delete(s.bucket.keys, key)
}

// lose removes the bucket.
func (s *simServer) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults["bucket lost"]++
	s.bucket = nil
	s.truth.newBucket()
}

// rollBack restarts the server with the bucket as it was the given time ago.
func (s *simServer) rollBack(ago time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket
	if b == nil {
		return
	}
	then := time.Now().Add(-ago)
	i := slices.IndexFunc(b.saved, func(n simSnapshot) bool { return n.at.After(then) }) - 1
	if i < 0 {
		return
	}
	s.faults["bucket rolled back"]++
	b.last, b.keys, b.saved = b.saved[i].last, b.saved[i].keys, b.saved[:i]
	clear(b.past)
	s.truth.newBucket()
}

// restart closes every connection. The stream stays, and comes back after the time
// given.
func (s *simServer) restart(outage time.Duration) {
	s.mu.Lock()
	s.faults[map[bool]string{true: "server restart", false: "outage"}[outage == 0]]++
	s.down = outage > 0
	ways := slices.Clone(s.ways)
	s.mu.Unlock()
	for _, y := range ways {
		y.kill()
	}
	if outage > 0 {
		s.after(outage, func() { s.down = false })
	}
}

func (s *simServer) setStorm(p float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storm = p
}

func (s *simServer) count(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[kind]++
}

func (s *simServer) struck() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.faults {
		n += c
	}
	return n
}

func (s *simServer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.faults)
}
