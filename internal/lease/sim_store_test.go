package lease_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

const (
	simStream = "KV_fab_test_production"
	simKV     = "$KV.fab_test_production."
	simFeed   = "fab.test.production.kv."
)

// A simServer is one JetStream stream, and what happens on the way to it and back. What
// it answers when nothing happens is what the real server answers:
// TestSimulatedServerAnswersAsTheRealOne.
type simServer struct {
	wg sync.WaitGroup

	mu     sync.Mutex // guards the fields below; never held while blocking
	rand   *rand.Rand
	closed bool
	down   bool    // takes no connections, and nothing arrives
	storm  float64 // probability of a fault for each message
	ways   []*way
	subs   map[string][]*simSub // without wildcards
	wild   []*simSub
	bucket *simBucket // nil: there is none
	faults map[string]int
	truth  *truth
	// script, if there is one, is asked first what becomes of a request: it reports
	// whether it has seen to it.
	script func(m message) bool
}

// A simRecord is one record of the stream.
type simRecord struct {
	seq     uint64
	value   []byte
	stored  time.Time
	expires time.Time // zero: never
	until   time.Time // when it was replaced, of one in the past
}

// A simBucket is the stream.
type simBucket struct {
	created time.Time
	config  json.RawMessage
	last    uint64
	keys    map[string]simRecord
	past    map[string][]simRecord // what was replaced lately, oldest first
	saved   []simSnapshot
}

// A simSnapshot is what a server that forgot something begins with.
type simSnapshot struct {
	at   time.Time
	last uint64
	keys map[string]simRecord
}

func newSimServer(seed uint64) *simServer {
	return &simServer{
		rand: rand.New(rand.NewPCG(seed, 1)), subs: map[string][]*simSub{}, faults: map[string]int{}, truth: newTruth(),
	}
}

func (s *simServer) way() *way {
	y := &way{s: s, up: true, down: true, wires: map[*wire]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ways = append(s.ways, y)
	return y
}

// close ends every connection and waits for their goroutines.
func (s *simServer) close() {
	s.mu.Lock()
	s.closed, s.down = true, true
	ways := s.ways
	s.mu.Unlock()
	for _, y := range ways {
		y.kill()
	}
	s.wg.Wait()
}

func (s *simServer) forget(w *wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(w.y.wires, w)
	for sid := range w.subs {
		s.drop(w, sid)
	}
}

func (s *simServer) ping(w *wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.y.up && w.y.down && !s.down {
		w.send([]byte("PONG\r\n"))
	}
}

func (s *simServer) subscribe(w *wire, subject, sid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &simSub{w, sid, strings.Split(subject, ".")}
	w.subs[sid] = b
	if strings.ContainsAny(subject, "*>") {
		s.wild = append(s.wild, b)
		return
	}
	s.subs[subject] = append(s.subs[subject], b)
}

func (s *simServer) unsubscribe(w *wire, sid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(w, sid)
}

func (s *simServer) drop(w *wire, sid string) {
	b, ok := w.subs[sid]
	if !ok {
		return
	}
	delete(w.subs, sid)
	same := func(o *simSub) bool { return o == b }
	subject := strings.Join(b.tokens, ".")
	if s.wild = slices.DeleteFunc(s.wild, same); len(s.subs[subject]) > 0 {
		if s.subs[subject] = slices.DeleteFunc(s.subs[subject], same); len(s.subs[subject]) == 0 {
			delete(s.subs, subject)
		}
	}
}

// route delivers to every subscription and returns to how many.
func (s *simServer) route(subject string, header, data []byte) (n int) {
	for _, b := range s.subs[subject] {
		b.deliver(subject, header, data)
		n++
	}
	tokens := strings.Split(subject, ".")
	for _, b := range s.wild {
		if b.matches(tokens) {
			b.deliver(subject, header, data)
			n++
		}
	}
	return n
}

// take takes a message from a client.
func (s *simServer) take(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !m.w.y.up {
		m.w.y.heldUp = append(m.w.y.heldUp, m)
		return
	}
	s.arrive(m)
}

var noResponders = []byte("NATS/1.0 503\r\n\r\n")

// arrive is called when a message has reached the server.
func (s *simServer) arrive(m message) {
	stored := strings.HasPrefix(m.subject, simKV)
	switch {
	case s.down, s.script != nil && s.script(m):
	case stored && s.bucket != nil, strings.HasPrefix(m.subject, "$JS.API."):
		s.transit(m)
	default:
		if s.route(m.subject, m.header, m.data) == 0 && m.reply != "" {
			s.route(m.reply, noResponders, nil)
		}
	}
}

// after runs f later, under the lock.
func (s *simServer) after(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed {
			f()
		}
	})
}

// serve applies a request and answers it.
func (s *simServer) serve(m message) {
	if s.down {
		return
	}
	var answer []byte
	key, stored := strings.CutPrefix(m.subject, simKV)
	switch {
	case stored && s.bucket == nil:
		if m.reply != "" {
			s.route(m.reply, noResponders, nil)
		}
		return
	case stored:
		answer = s.put(key, m)
	default:
		answer = s.ask(strings.TrimPrefix(m.subject, "$JS.API."), m)
	}
	s.reply(m.reply, answer)
}

func apiFailure(code, errCode int, text string) []byte {
	return fmt.Appendf(nil, `{"type":"io.nats.error","error":{"code":%d,"err_code":%d,"description":%q}}`, code, errCode, text)
}

// wrongLast is the server's refusal of a guard.
func wrongLast(seq uint64) []byte {
	return apiFailure(400, 10071, fmt.Sprintf("wrong last sequence: %d", seq))
}

// put stores a record, if its guard holds.
func (s *simServer) put(key string, m message) []byte {
	guard := key
	if other := m.value("Nats-Expected-Last-Subject-Sequence-Subject"); other != "" {
		guard = strings.TrimPrefix(other, simKV)
	}
	b := s.bucket
	if want := m.value("Nats-Expected-Last-Subject-Sequence"); want != "" && want != strconv.FormatUint(b.read(guard).seq, 10) {
		return wrongLast(b.read(guard).seq)
	}
	now := time.Now()
	r := simRecord{value: m.data, stored: now}
	if ttl, err := strconv.Atoi(m.value("Nats-TTL")); err == nil {
		r.expires = now.Add(time.Duration(ttl) * time.Second)
	}
	s.truth.commit(b, key, b.last+1, m.data)
	seq := b.store(key, r)
	s.publish(key, seq, m.data)
	return fmt.Appendf(nil, `{"stream":%q,"seq":%d}`, simStream, seq)
}

// read returns the newest record of a key; the zero one if there is none.
func (b *simBucket) read(key string) simRecord {
	r, ok := b.keys[key]
	if ok && !r.expires.IsZero() && !time.Now().Before(r.expires) {
		delete(b.keys, key)
		return simRecord{}
	}
	return r
}

func (b *simBucket) store(key string, r simRecord) uint64 {
	if n := len(b.saved); n == 0 || r.stored.Sub(b.saved[n-1].at) > time.Second {
		b.saved = append(b.saved[max(0, n-20):], simSnapshot{r.stored, b.last, maps.Clone(b.keys)})
	}
	if old, ok := b.keys[key]; ok {
		b.forget(key, old)
	}
	b.last++
	r.seq = b.last
	b.keys[key] = r
	return r.seq
}

func (b *simBucket) forget(key string, old simRecord) {
	old.until = time.Now()
	past := append(b.past[key], old)
	b.past[key] = past[max(0, len(past)-6):]
}

// ask answers the JetStream API.
func (s *simServer) ask(verb string, m message) []byte {
	b := s.bucket
	switch {
	case verb == "INFO":
		return []byte(`{"api":{"level":3}}`)
	case verb == "STREAM.CREATE."+simStream:
		if b != nil {
			return apiFailure(400, 10058, "stream name already in use with a different configuration")
		}
		return s.create(m.data)
	case b == nil:
		return apiFailure(404, 10059, "stream not found")
	case verb == "STREAM.INFO."+simStream:
		return b.info()
	case verb == "STREAM.MSG.GET."+simStream:
		return s.get(m)
	}
	return apiFailure(500, 10049, "not simulated: "+verb)
}

// holder returns the record of who holds a claim, the zero one if nobody does.
func (s *simServer) holder(name string) lease.ClaimRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bucket == nil {
		return lease.ClaimRecord{}
	}
	key := lease.KeyElection(name)
	e := s.bucket.read(key)
	r, err := lease.ParseClaim(kv.Entry{Key: key, Rev: e.seq, Value: e.value})
	if err != nil || !r.Held() || s.bucket.read(lease.KeyPID(r.PID)).seq > r.Inc {
		return lease.ClaimRecord{}
	}
	return r
}

func (s *simServer) create(config []byte) []byte {
	var c struct {
		FirstSeq uint64 `json:"first_seq"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return apiFailure(400, 10025, err.Error())
	}
	s.bucket = &simBucket{
		created: time.Now().UTC(), config: config, last: max(c.FirstSeq, 1) - 1,
		keys: map[string]simRecord{}, past: map[string][]simRecord{},
	}
	return s.bucket.info()
}

func (b *simBucket) info() []byte {
	data, err := json.Marshal(map[string]any{
		"config": b.config, "created": b.created, "ts": time.Now().UTC(),
		"state": map[string]any{"messages": len(b.keys), "last_seq": b.last},
	})
	if err != nil {
		panic(err)
	}
	return data
}

func (s *simServer) get(m message) []byte {
	var req struct {
		Last string `json:"last_by_subj"`
	}
	if err := json.Unmarshal(m.data, &req); err != nil {
		return apiFailure(400, 10025, err.Error())
	}
	key := strings.TrimPrefix(req.Last, simKV)
	r := s.bucket.read(key)
	if s.strikes(0.05, "stale read") {
		r = s.bucket.stale(key, r)
	}
	if r.seq == 0 {
		return apiFailure(404, 10037, "no message found")
	}
	data, err := json.Marshal(map[string]any{"message": map[string]any{
		"subject": req.Last, "seq": r.seq, "data": r.value, "time": r.stored.UTC(),
	}})
	if err != nil {
		panic(err)
	}
	return data
}

// staleness bounds how far in the past a server lives that was deposed and does not
// know: nats-server's lost-quorum check, shortened as the leases are.
const staleness = 2 * time.Second

// stale returns a record that was replaced lately, or r.
func (b *simBucket) stale(key string, r simRecord) simRecord {
	for _, old := range b.past[key] {
		if time.Since(old.until) < staleness {
			return old
		}
	}
	return r
}

// publish repeats a change on the feed.
func (s *simServer) publish(key string, seq uint64, value []byte) {
	header := fmt.Appendf(nil, "NATS/1.0\r\nNats-Stream: %s\r\nNats-Subject: %s\r\nNats-Sequence: %d\r\n\r\n", simStream, simKV+key, seq)
	s.feed(func() { s.route(simFeed+key, header, value) })
}
