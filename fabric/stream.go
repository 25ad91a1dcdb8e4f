package fabric

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
	"github.com/natsfabric/natsfabric/internal/window"
)

// An OutStream is the writing end of a stream of bytes to another process. It is not
// safe for concurrent use, but for Acknowledged.
type OutStream struct {
	ctx   context.Context // bounds the stream's life, as a file's deadline does
	l     *outLink
	crc   uint32
	ended bool
	err   error // why no more can be written
}

// An InStream is the reading end of a stream of bytes from another process. Read and
// Close may be called at the same time; it is not safe for concurrent use otherwise.
type InStream struct {
	// From is who writes.
	From PID
	// Name is what it calls the stream.
	Name string
	// Size is how many bytes it says that there will be, -1 if it does not.
	Size int64

	in   *inLink
	read int64

	mu    sync.Mutex // guards the fields below
	parts [][]byte   // accepted and not read
	crc   uint32     // of all accepted
	err   error      // io.EOF, or why there is no more
	more  chan struct{}
}

const (
	// maxWaitingStreams bounds the streams that wait for AcceptStream.
	maxWaitingStreams = 64
	// streamProbe is how often the writer of a stream shows that it is there.
	streamProbe = 5 * time.Second
	// maxStreamName bounds a stream's name, in bytes.
	maxStreamName = 256
)

// OpenStream opens a stream of bytes to the process to, which gets it from
// [Node.AcceptStream], with a name, which may be any text of at most 256 bytes, and the
// number of bytes to come, -1 if that is not known. The caller must call Close.
//
// What is written arrives as with [Reliable]: once, in order, with checksums, over
// reconnects, if the reader's node hears of the writer within 30 s; some MiB are under way
// at most, and Write waits while the reader is behind. The stream ends with ctx: what was
// not closed by then is aborted. OpenStream does not wait for the receiver: that nobody is
// there turns out later, as an error of Write or Close.
func (n *Node) OpenStream(ctx context.Context, to PID, name string, size int64) (*OutStream, error) {
	return n.courier.openStream(ctx, to, name, size)
}

// AcceptStream waits for the next stream that another process opens to this one. The
// caller must call Close. Of streams that nobody accepts, 64 wait; more are refused.
func (n *Node) AcceptStream(ctx context.Context) (*InStream, error) {
	c := n.courier
	if c.off {
		return nil, fmt.Errorf("accept a stream: %w", ErrPassive)
	}
	select {
	case s := <-c.links.streams:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.done:
		return nil, ErrClosed
	}
}

func (c *courier) openStream(ctx context.Context, to PID, name string, size int64) (*OutStream, error) {
	_, err := c.ready(ctx, to)
	switch {
	case err != nil:
	case to == Everyone:
		err = &NameError{Field: "pid", Name: string(to), Reason: "a stream goes to one process"}
	case len(name) > maxStreamName:
		err = &NameError{Field: "stream", Name: name[:16] + "...", Reason: fmt.Sprintf("it is longer than %d bytes", maxStreamName)}
	case size < -1:
		err = &ConfigError{"size", fmt.Sprintf("%d is negative", size)}
	}
	if err != nil {
		return nil, fmt.Errorf("stream to %s: %w", to, err)
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	l := c.newLink(&dest{pid: to, reply: c.subj.reply(c.cfg.pid, to), plain: kindSend})
	l.d.subject = c.subj.chunk(to, l.name)
	l.greeting = append(binary.AppendUvarint(nil, uint64(size+1)), name...)
	return &OutStream{ctx: ctx, l: l}, nil
}

// Write sends p, in parts. It returns when all is under way; p may be used again.
func (s *OutStream) Write(p []byte) (n int, err error) {
	if s.ended {
		return 0, fmt.Errorf("stream to %s: %w", s.l.d.pid, io.ErrClosedPipe)
	}
	for size := s.l.c.chunk(); len(p) > 0; {
		part := p[:min(size, len(p))]
		it := item{kind: kindPart, more: true, hasCRC: true, crc: crc32.Update(s.crc, castagnoli, part), data: part}
		if err := s.add(&it); err != nil {
			return n, fmt.Errorf("stream to %s: %w", s.l.d.pid, err)
		}
		s.crc = it.crc
		p = p[len(part):]
		n += len(part)
	}
	return n, nil
}

// add has it follow what was written. Nothing follows what could not be, because its
// reader would take the stream for a complete one.
func (s *OutStream) add(it *item) error {
	if s.err == nil && s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
	}
	if s.err == nil {
		s.err = s.l.add(s.ctx, it, nil)
	}
	return s.err
}

// Close ends the stream, and returns when its reader's node has accepted all of it: the
// reader has read it but for the last 4 MiB. After an error it is not known how much was
// accepted. If a Write has failed, or the stream's context has ended, Close is Abort, and
// returns why.
func (s *OutStream) Close() error { return s.end(&item{kind: kindPart, hasCRC: true, crc: s.crc}) }

// Abort ends the stream; its reader gets [ErrStreamAborted] after what was accepted, or
// [ErrStreamStalled] if it cannot be told. It waits until the reader's node knows, unless
// the stream's context has ended.
func (s *OutStream) Abort() error { return s.end(&item{kind: kindPart}) }

func (s *OutStream) end(last *item) error {
	if s.ended {
		return nil
	}
	s.ended = true
	err := s.add(last)
	if err != nil {
		s.l.abandon()
		return fmt.Errorf("stream to %s: %w", s.l.d.pid, err)
	}
	defer s.l.discard()
	if err = s.l.settled(s.ctx); err == nil {
		err = s.l.failure()
	}
	if err != nil {
		return fmt.Errorf("stream to %s: %w", s.l.d.pid, err)
	}
	return nil
}

// abandon aborts the link of a stream as soon as its window has room, and forgets it. It
// does not wait. If that takes longer than stallLimit, the reader learns it by silence.
func (l *outLink) abandon() {
	l.mu.Lock()
	known := l.begun && l.err == nil
	l.mu.Unlock()
	if !known || !l.c.begin(func() {
		defer l.discard()
		ctx, cancel := context.WithTimeout(life{l.c}, stallLimit)
		defer cancel()
		if l.add(ctx, &item{kind: kindPart}, nil) == nil {
			_ = l.settled(ctx) // nobody is there to be told
		}
	}) {
		l.discard()
	}
}

// begin runs f in a goroutine that close waits for, unless the courier is closed.
func (c *courier) begin(f func()) bool {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if c.closed.Load() {
		return false
	}
	c.wg.Go(f)
	return true
}

// Acknowledged returns how many bytes the reader's node has accepted, at least.
func (s *OutStream) Acknowledged() int64 {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	n := int64(s.l.win.Sent())
	for _, p := range s.l.kept {
		r := frameReader{b: p.buf}
		for it := (item{}); r.next(&it); {
			n -= int64(len(it.data))
		}
	}
	return max(n, 0)
}

// discard forgets a link whose user is through with it.
func (l *outLink) discard() {
	l.c.links.mu.Lock()
	defer l.c.links.mu.Unlock()
	delete(l.c.links.byName, l.name)
}

func (l *outLink) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// onStream takes in what is published to class s at this node. It waits for nobody.
func (c *courier) onStream(m *nats.Msg) {
	from, name, ok := c.subj.parseChunk(m.Subject)
	t, tagged := c.tagOf(m, from, c.cfg.pid)
	if !ok || !tagged || t.secret != name {
		c.drop(m)
		return
	}
	in := c.streamLink(from, t, m.Data)
	switch {
	case in == nil:
	case t.kind == kindProbe:
		in.probed(t.seq)
	case t.kind == kindLink:
		in.mu.Lock()
		defer in.mu.Unlock()
		in.used = time.Now()
		in.frame(nil, t.id, m)
		in.tell()
	default:
		c.drop(m)
	}
}

// streamLink returns the link of a stream. It makes one if its first probe has come;
// without one, a prober is told that there is none.
func (c *courier) streamLink(from PID, t tag, data []byte) *inLink {
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	if in := c.links.inNamed(t.secret); in != nil {
		if in.from != from || in.origin.nonce != t.nonce || !in.isStream {
			return nil
		}
		return in
	}
	if t.kind != kindProbe {
		c.stray.Add(1)
		return nil
	}
	in := newInLink(c, t.secret, from, t.nonce)
	in.isStream = true
	size, n := binary.Uvarint(data)
	if t.id != 1 || n <= 0 || len(data)-n > maxStreamName || !c.links.admit(from, true) {
		c.links.tell(in) // with no window: there is no such link
		return nil
	}
	in.stream = &InStream{
		From: from, Name: string(data[n:]), Size: int64(size) - 1, in: in, more: make(chan struct{}, 1),
	}
	select {
	case c.links.streams <- in.stream:
	default:
		c.links.tell(in)
		return nil
	}
	in.win = window.NewReceiver(c.grant(in))
	c.links.in[in.name] = in
	return in
}

// takeStream takes in a part of a stream. It needs in.mu.
func (in *inLink) takeStream(it *item) (on bool) {
	s := in.stream
	if s == nil || it.kind != kindPart {
		in.c.invalid.Add(1)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	crc := crc32.Update(s.crc, castagnoli, it.data)
	if it.hasCRC && crc != it.crc {
		in.c.invalid.Add(1)
		return false // as if it had not come: it comes again
	}
	s.crc = crc
	in.win.Accepted(it.size())
	switch {
	case s.err != nil:
	case it.more:
		s.parts = append(s.parts, it.data)
	case !it.hasCRC:
		s.err = ErrStreamAborted
	default:
		s.err = io.EOF
	}
	s.wake()
	return true
}

// wake needs s.mu.
func (s *InStream) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// fail ends the stream, and reports whether its writer had.
func (s *InStream) fail(err error) (ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ended = s.err != nil; !ended {
		s.err = err
	}
	s.wake()
	return ended
}

// Read reads what has come, waiting for some. At the end it returns [io.EOF], and
// then all that was written has been read; every other error means that some may be
// missing: [ErrStreamAborted], [ErrStreamStalled] when nothing was heard of its writer for
// 30 s, or [ErrClosed].
func (s *InStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		if len(s.parts) > 0 {
			n := copy(p, s.parts[0])
			s.parts[0] = s.parts[0][n:]
			whole := len(s.parts[0]) == 0
			if whole {
				s.parts[0] = nil
				s.parts = s.parts[1:]
			}
			s.mu.Unlock()
			s.read += int64(n)
			s.in.readSome(n, whole)
			return n, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-s.more:
		case <-s.in.c.done:
			return 0, ErrClosed
		}
	}
}

// Close ends the stream for its reader. If it has not ended, its writer gets
// [ErrStreamAborted].
func (s *InStream) Close() error {
	s.in.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = nil
	return nil
}

// close ends the link of a stream for its reader, if it is not over.
func (in *inLink) close() {
	s := &in.c.links
	s.mu.Lock()
	defer s.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if s.in[in.name] == in {
		s.retire(in, io.ErrClosedPipe)
		in.tell()
	}
}

// readSome notes that n bytes were read, and whether that was the end of a part.
func (in *inLink) readSome(n int, whole bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	messages := uint64(0)
	if whole {
		messages = 1
	}
	if in.win != nil && in.win.Consume(messages, uint64(n)) {
		in.tell()
	}
}

// parseChunk returns who published to subject, one that chunkAll matched, and the
// stream's name on the wire.
func (s subjects) parseChunk(subject string) (from PID, stream string, ok bool) {
	prefix := s.prefix + classChunk + string(s.me) + "."
	if len(subject) <= len(prefix) || subject[:len(prefix)] != prefix {
		return "", "", false
	}
	rest := subject[len(prefix):]
	dot := len(rest) - secretLen - 1
	if dot < 1 || rest[dot] != '.' || !isBase62(rest[dot+1:]) || token.CheckPID(rest[:dot]) != nil {
		return "", "", false
	}
	return PID(rest[:dot]), rest[dot+1:], true
}
