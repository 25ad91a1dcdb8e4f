//go:build unix

package tests

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

const faultSize = 128 // of a message

// patienceOf is how long a message that is acknowledged one by one is waited for.
func (p part) patienceOf() time.Duration {
	if p.mode() == fabric.Durable {
		return 20 * time.Second // a mail stream is without a leader for 4 to 8 s
	}
	return time.Second
}

// mode is that of messages that are acknowledged one by one.
func (p part) mode() fabric.Mode {
	for _, m := range []fabric.Mode{fabric.Reliable, fabric.Durable} {
		if p.Mode == m.String() {
			return m
		}
	}
	return fabric.Acked
}

// recordOf is message n of a lane: both numbers, bytes that follow from them, and a sum.
func recordOf(buf []byte, lane, n uint64) []byte {
	binary.BigEndian.PutUint64(buf, lane)
	binary.BigEndian.PutUint64(buf[8:], n)
	for i := 16; i < len(buf)-4; i++ {
		buf[i] = byte(lane + n*uint64(i))
	}
	binary.BigEndian.PutUint32(buf[len(buf)-4:], crc32.ChecksumIEEE(buf[:len(buf)-4]))
	return buf
}

// parseRecord returns what recordOf was given.
func parseRecord(data []byte) (lane string, n uint64, err error) {
	if len(data) < 20 || binary.BigEndian.Uint32(data[len(data)-4:]) != crc32.ChecksumIEEE(data[:len(data)-4]) {
		return "", 0, fmt.Errorf("%d bytes are not what was sent: %.30x", len(data), data)
	}
	return laneName(binary.BigEndian.Uint64(data)), binary.BigEndian.Uint64(data[8:]), nil
}

func laneName(lane uint64) string { return strconv.FormatUint(lane, 36) }

// A talker sends to "listener", and writes down what it does.
type talker struct {
	n *fabric.Node
	p part

	mu sync.Mutex // guards j
	j  *journal

	sent, acked      atomic.Int64 // in mode Reliable
	calls            atomic.Int64 // one by one: acknowledged
	unknown, refused atomic.Int64
}

// talk sends p.Rate messages a second in mode Reliable, and beside them in mode Acked,
// or p.Mode, what p.Lanes goroutines can, until it is stopped. Then all of mode Reliable
// must be acknowledged.
func talk(ctx context.Context, n *fabric.Node, p part, stop <-chan struct{}) error {
	j, err := newJournal(p.History)
	if err != nil {
		return err
	}
	if _, err := viewOf(ctx, n, members(2)); err != nil {
		return err
	}
	k := &talker{n: n, p: p, j: j}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	play := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	if p.Rate > 0 {
		play(func() error { return k.stream(ctx, stop) })
	}
	for range p.Lanes {
		play(func() error { return k.call(ctx, stop) })
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		every(ctx, 20*time.Millisecond, func() bool { k.tell(); return true })
	}()
	wg.Wait()
	err = context.Cause(ctx)
	cancel(nil)
	<-told
	k.tell()
	return errors.Join(err, j.close())
}

func (k *talker) tell() {
	say("sent", int(k.sent.Load()))
	say("acked", int(k.acked.Load()))
	say("calls", int(k.calls.Load()))
	say("unknown", int(k.unknown.Load()))
	say("refused", int(k.refused.Load()))
}

// write writes d down before anything else happens.
func (k *talker) write(d deed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.j.write(d)
}

// every calls f until it returns false or ctx ends.
func every(ctx context.Context, d time.Duration, f func() bool) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stream is the lane of mode Reliable.
func (k *talker) stream(ctx context.Context, stop <-chan struct{}) error {
	lane := rand.Uint64()
	name := laneName(lane)
	flushed := make(chan error, 1) // capacity 1: read once, at the end
	done := make(chan struct{})
	go func() { flushed <- k.confirm(ctx, name, done) }()
	err := func() error {
		defer close(done)
		buf := make([]byte, faultSize)
		began, n := time.Now(), 0
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-stop:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-tick.C:
			}
			// What was missed while the window was full is not made up for.
			due := int(float64(k.p.Rate) * time.Since(began).Seconds())
			if due-n > k.p.Rate/20 {
				began, n, due = time.Now(), 0, k.p.Rate/20
			}
			first := uint64(k.sent.Load()) + 1
			if due <= n {
				continue
			}
			last := first + uint64(due-n) - 1
			k.write(deed{"sent", name, first, last})
			for i := first; i <= last; i++ {
				if err := k.n.SendMsg(ctx, &fabric.Message{To: "listener", Mode: fabric.Reliable, Data: recordOf(buf, lane, i)}); err != nil {
					return fmt.Errorf("reliable message %d: %w", i, err)
				}
				k.sent.Add(1)
			}
			n = due
		}
	}()
	return errors.Join(err, <-flushed)
}

// confirm writes down what has been acknowledged, the last time when all has.
func (k *talker) confirm(ctx context.Context, lane string, done <-chan struct{}) (err error) {
	every(ctx, 50*time.Millisecond, func() bool {
		last := false
		select {
		case <-done:
			last = true
		default:
		}
		upTo := k.sent.Load()
		err = k.n.Flush(ctx)
		if _, lost := errors.AsType[fabric.Undeliverable](err); lost {
			return false
		}
		if err != nil { // the connection broke
			return true
		}
		if before := k.acked.Swap(upTo); upTo > before {
			k.write(deed{"acked", lane, uint64(before) + 1, uint64(upTo)})
		}
		return !last
	})
	return err
}

// call is a lane of messages that are acknowledged one by one.
func (k *talker) call(ctx context.Context, stop <-chan struct{}) error {
	lane := rand.Uint64()
	name := laneName(lane)
	buf := make([]byte, faultSize)
	var intent uint64
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
		}
		if n > intent {
			intent = n + 99
			k.write(deed{"sent", name, n, intent})
		}
		limit, cancel := context.WithTimeout(ctx, k.p.patienceOf())
		err := k.n.SendMsg(limit, &fabric.Message{To: "listener", Mode: k.p.mode(), Data: recordOf(buf, lane, n)})
		kind, counter := "acked", &k.calls
		switch {
		case errors.Is(err, fabric.ErrUnknownOutcome):
			kind, counter = "unknown", &k.unknown
		case errors.Is(err, fabric.ErrDisconnected), errors.Is(err, fabric.ErrUnreachable),
			errors.Is(err, fabric.ErrInboxFull), errors.Is(err, fabric.ErrMailboxFull), errors.Is(err, fabric.ErrNoMail):
			kind, counter = "refused", &k.refused
			<-time.After(100 * time.Millisecond) // or thousands are refused until it is back
		case err != nil:
			cancel()
			return fmt.Errorf("acked message %d: %w", n, err)
		}
		cancel()
		counter.Add(1)
		k.mu.Lock()
		k.j.remember(kind, name, n)
		k.mu.Unlock()
	}
}

// hear receives until it is stopped and has received all that came, its mail included,
// and writes down what.
func hear(ctx context.Context, n *fabric.Node, p part, stop <-chan struct{}) error {
	j, err := newJournal(p.History)
	if err != nil {
		return err
	}
	var got atomic.Int64
	tell := func() bool {
		say("got", int(got.Load()))
		say("assembling", n.Stats().Assembling)
		return true
	}
	telling, cancel := context.WithCancel(ctx)
	defer cancel()
	told, left := make(chan struct{}), make(chan error, 1) // capacity 1: read once, at the end
	go func() {
		defer close(told)
		every(telling, 10*time.Millisecond, tell)
	}()
	go func() {
		<-stop
		every(ctx, 50*time.Millisecond, func() bool { // while mail waits, or nobody knows
			counts, err := n.Mail(ctx)
			return err != nil || slices.ContainsFunc(counts, func(c fabric.MailCount) bool { return c.PID == n.PID() && c.Waiting > 0 })
		})
		left <- n.Drain(ctx)
	}()
	for {
		m, err := n.Receive(ctx)
		if errors.Is(err, fabric.ErrClosed) {
			break
		}
		if err != nil {
			return err
		}
		lane, i, err := parseRecord(m.Data)
		if err != nil {
			return err
		}
		if m.Attempt() > 1 {
			j.remember("again", lane, i)
		} else {
			j.remember("got", lane, i)
		}
		if err := m.Done(ctx, nil); err != nil && !errors.Is(err, fabric.ErrDisconnected) {
			return err
		}
		got.Add(1)
	}
	cancel()
	<-told
	return errors.Join(<-left, j.close())
}

// sendOne sends one message of p.Size bytes, and waits until it has arrived.
func sendOne(ctx context.Context, n *fabric.Node, p part, _ <-chan struct{}) error {
	j, err := newJournal(p.History)
	if err != nil {
		return err
	}
	if _, err := viewOf(ctx, n, members(2)); err != nil {
		return err
	}
	lane := rand.Uint64()
	j.write(deed{"sent", laneName(lane), 1, 1})
	data := recordOf(make([]byte, p.Size), lane, 1)
	say("sending", 1)
	if err := n.SendMsg(ctx, &fabric.Message{To: "listener", Mode: p.mode(), Data: data}); err != nil {
		return err
	}
	if err := n.Flush(ctx); err != nil {
		return err
	}
	j.write(deed{"acked", laneName(lane), 1, 1})
	return j.close()
}
