package fabric

import (
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// An outbox is the queue of a goroutine that publishes the durable messages of all
// callers. Each caller waits for its message to be stored; if each published by itself,
// nats.go would write every message to the socket alone, which costs more than all else.
// So what came together goes together, and a lone message goes at once.
type outbox struct {
	wake chan struct{} // capacity 1: a token means that the queue is not empty
	once sync.Once     // starts the goroutine

	mu    sync.Mutex // guards queue
	queue []posted

	publishing sync.Mutex // held while messages are published; guards their gone
}

// posted is a posting and its first call: what s.call is later, is finish's alone.
type posted struct {
	s     *posting
	call  *call
	reply string
}

// enqueue has s published for the first time. The caller calls finish, which returns
// when nobody uses s any more.
func (p *mailer) enqueue(s *posting) {
	p.outbox.once.Do(p.startOutbox)
	s.begun.Store(false)
	s.handed.Store(false)
	s.began, s.tries, s.open, s.lost, s.err = time.Now(), 1, 1, 0, nil
	p.await(s)
	p.outbox.mu.Lock()
	p.outbox.queue = append(p.outbox.queue, posted{s, s.call, s.reply})
	p.outbox.mu.Unlock()
	select {
	case p.outbox.wake <- struct{}{}:
	default:
	}
}

func (p *mailer) startOutbox() {
	p.c.subsMu.Lock()
	defer p.c.subsMu.Unlock()
	if !p.c.closed.Load() {
		p.c.wg.Go(p.runOutbox)
	}
}

func (p *mailer) runOutbox() {
	id := []string{""}
	plain := nats.Header{headerID: id} // of what has an id only: nats.go keeps no header
	var batch []posted
	for {
		select {
		case <-p.outbox.wake:
		case <-p.c.done:
			return
		}
		runtime.Gosched() // let those add theirs who were woken together
		p.outbox.mu.Lock()
		batch, p.outbox.queue = p.outbox.queue, batch[:0]
		p.outbox.mu.Unlock()
		p.outbox.publishing.Lock()
		for _, q := range batch {
			if q.s.gone {
				continue
			}
			q.s.begun.Store(true)
			header := plain
			if id[0] = q.s.mailID; id[0] == "" || len(q.s.header) > 0 {
				header = q.s.fullHeader()
			}
			if err := p.publish(q.s, header, q.reply); err == nil {
				if !q.s.dead {
					p.c.sent.Add(1)
				}
			} else if p.calls.take(q.call) {
				q.call.answer <- answer{err: err}
			}
			q.s.handed.Store(true)
		}
		p.outbox.publishing.Unlock()
		if cap(batch) > maxIdle {
			batch = nil
		}
		clear(batch)
	}
}

// abandon makes sure that s is not published any more by the outbox: a repetition may have
// been stored before its turn came, and its caller may change it now. Afterwards the outbox
// has handed it over, or never will.
func (p *mailer) abandon(s *posting) {
	if s.handed.Load() {
		return
	}
	p.outbox.publishing.Lock()
	s.gone = !s.handed.Load()
	p.outbox.publishing.Unlock()
}
