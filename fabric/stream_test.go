package fabric

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"
)

func TestStream(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	const size = 20<<20 + 7
	sums := make(chan [2][]byte, 1)
	go func() {
		in, err := b.AcceptStream(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		if in.From != "a" || in.Name != "the file" || in.Size != size {
			t.Errorf("accepted %+v", in)
		}
		h := sha256.New()
		if n, err := io.Copy(h, in); err != nil || n != size {
			t.Errorf("read %d, %v", n, err)
		}
		in.Close() // and its link is forgotten
		sums <- [2][]byte{h.Sum(nil)}
	}()
	out, err := a.OpenStream(ctx, "b", "the file", size)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if n, err := io.CopyN(io.MultiWriter(out, h), rand.NewChaCha8([32]byte{}), size); err != nil || n != size {
		t.Fatalf("wrote %d, %v", n, err)
	}
	// Small traffic flows beside it.
	if err := a.Send(ctx, "b", []byte("hi")); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if n := out.Acknowledged(); n != size {
		t.Errorf("%d acknowledged", n)
	}
	if got := <-sums; !bytes.Equal(got[0], h.Sum(nil)) {
		t.Error("what was read is not what was written")
	}
	if m := receive(t, b); string(m.Data) != "hi" {
		t.Errorf("received %q", m.Data)
	}
	b.courier.links.mu.Lock()
	defer b.courier.links.mu.Unlock()
	if n := len(b.courier.links.in); n != 0 {
		t.Errorf("%d links are left", n)
	}
}

// TestStreamSlow: a reader that does not read holds its writer back.
func TestStreamSlow(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx, cancel := context.WithCancel(deadline(t))
	out, err := a.OpenStream(ctx, "b", "", -1)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int, 1)
	go func() {
		n, err := out.Write(make([]byte, 64<<20))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Write: %v", err)
		}
		wrote <- n
	}()
	in, err := b.AcceptStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	if _, err := io.ReadFull(in, buf); err != nil {
		t.Fatal(err)
	}
	for last := int64(-1); out.Acknowledged() != last; _ = a.courier.nc.Flush() {
		last = out.Acknowledged()
	}
	cancel()
	if n := <-wrote; n > 1<<20+maxWindow {
		t.Errorf("%d bytes were written to one who read 1 MiB", n)
	}
	if in.Size != -1 {
		t.Errorf("size %d", in.Size)
	}
}

// TestStreamEnds: whichever end gives up, the other learns of it.
func TestStreamEnds(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	open := func() (*OutStream, *InStream) {
		out, err := a.OpenStream(ctx, "b", "x", -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("some")); err != nil {
			t.Fatal(err)
		}
		in, err := b.AcceptStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return out, in
	}
	out, in := open()
	if err := out.Abort(); err != nil {
		t.Errorf("Abort: %v", err)
	}
	if data, err := io.ReadAll(in); string(data) != "some" || !errors.Is(err, ErrStreamAborted) {
		t.Errorf("read %q, %v from an aborted stream", data, err)
	}
	out, in = open()
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	var err error
	for err == nil && ctx.Err() == nil {
		_, err = out.Write(make([]byte, 1000))
	}
	if !errors.Is(err, ErrStreamAborted) {
		t.Errorf("Write to a closed stream: %v", err)
	}
	out, _ = open()
	if err := out.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := out.Write(nil); err == nil {
		t.Error("Write after Close succeeds")
	}
	out, err = a.OpenStream(ctx, "nobody", "x", -1)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = out.Write([]byte("some"))
	if err := out.Close(); !errors.Is(err, ErrNoPeer) {
		t.Errorf("to nobody: %v", err)
	}
	for _, bad := range []struct {
		to   PID
		name string
		size int64
	}{{Everyone, "", -1}, {"a.b", "", -1}, {"b", string(make([]byte, 300)), -1}, {"b", "", -2}} {
		if _, err := a.OpenStream(ctx, bad.to, bad.name, bad.size); err == nil {
			t.Errorf("%+v is opened", bad)
		}
	}
}

// TestStreamsRefused: of streams that nobody accepts a few wait, and no more.
func TestStreamsRefused(t *testing.T) {
	s := startServer(t)
	a, _ := pair(t, s)
	ctx := deadline(t)
	refused := 0
	var open []*OutStream
	for range maxWaitingStreams + 5 {
		out, err := a.OpenStream(ctx, "b", "", -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		open = append(open, out)
	}
	for _, out := range open {
		switch err := out.Close(); {
		case errors.Is(err, ErrStreamAborted):
			refused++
		case err != nil:
			t.Errorf("Close: %v", err)
		}
	}
	if refused != 5 {
		t.Errorf("%d were refused", refused)
	}
}

// TestStreamReaderStopped: a node that did not run for a while does not take that for its
// writers' silence.
func TestStreamReaderStopped(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	out, err := a.OpenStream(ctx, "b", "", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	in, err := b.AcceptStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	l := &b.courier.links
	now := time.Now()
	l.expire(now)
	now = now.Add(time.Minute)
	l.expire(now)
	over := func() bool {
		in.in.mu.Lock()
		defer in.in.mu.Unlock()
		return in.in.stream == nil
	}
	if over() {
		t.Error("it was given up at once")
	}
	for range stallLimit/expireEvery + 1 {
		now = now.Add(expireEvery)
		l.expire(now)
	}
	if !over() {
		t.Fatal("it is not given up")
	}
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, ErrStreamStalled) {
		t.Errorf("Read: %v, want ErrStreamStalled", err)
	}
}
