package fabric_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// patient has a member stay one while its link is cut.
func patient(c *fabric.Config) { c.Lease = 5 * time.Minute }

// opened opens a stream from a to b, on which "some" has come.
func opened(t *testing.T, ctx context.Context, a, b *fabric.Node) (*fabric.OutStream, *fabric.InStream) {
	t.Helper()
	out, err := a.OpenStream(ctx, b.PID(), "x", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	in, err := b.AcceptStream(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "some" {
		t.Fatalf("read %q, %v", buf, err)
	}
	return out, in
}

// noStream checks that n accepts none.
func noStream(t *testing.T, n *fabric.Node) {
	t.Helper()
	if in, err := n.AcceptStream(within(t, 2*time.Second)); err == nil {
		data, err := io.ReadAll(in)
		t.Errorf("stream %q is accepted once more, with %q, %v", in.Name, data, err)
	}
}

// drained is what is left to be read, and how that ended; nil after a minute.
func drained(in *fabric.InStream) (n int, err error) {
	type result struct {
		n   int64
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := io.Copy(io.Discard, in)
		if err == nil {
			err = io.EOF
		}
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return int(r.n), r.err
	case <-time.After(time.Minute):
		_ = in.Close()
		r := <-done
		return int(r.n), nil
	}
}

// writerAndReader joins a, over a link that can be cut, and b.
func writerAndReader(t *testing.T, s *natstest.Server) (a *fabric.Node, la *natstest.Link, b *fabric.Node) {
	t.Helper()
	b = join(t, s, "b", patient)
	a, la = joinLink(t, s, "a", patient)
	await(t, a, "a", "b")
	return a, la, b
}

// TestStreamOnce: a stream that was read to its end, and closed, does not begin again
// because its writer has not heard of it.
func TestStreamOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la, b := writerAndReader(t, s)
		ctx := within(t, 10*time.Minute)
		la.CutReplies()
		closed := make(chan error, 1)
		go func() {
			out, err := a.OpenStream(ctx, "b", "x", -1)
			if err == nil {
				_, err = out.Write([]byte("some"))
				err = errors.Join(err, out.Close())
			}
			closed <- err
		}()
		in, err := b.AcceptStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(in); err != nil || string(data) != "some" {
			t.Errorf("read %q, %v", data, err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		noStream(t, b)
		la.Heal()
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		noStream(t, b)
	})
}

// TestStreamRefusedOnce: so does one that its reader closed before its end, and its
// writer learns that.
func TestStreamRefusedOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la, b := writerAndReader(t, s)
		la.CutReplies()
		out, in := opened(t, within(t, 10*time.Minute), a, b)
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		noStream(t, b)
		la.Heal()
		if err := out.Close(); !errors.Is(err, fabric.ErrStreamAborted) {
			t.Errorf("Close: %v, want ErrStreamAborted", err)
		}
		noStream(t, b)
	})
}

// TestStreamAbortHeard: that a stream was aborted is acknowledged although its reader
// has closed it.
func TestStreamAbortHeard(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la, b := writerAndReader(t, s)
		out, in := opened(t, within(t, 10*time.Minute), a, b)
		la.CutReplies()
		aborted := make(chan error, 1)
		go func() { aborted <- out.Abort() }()
		if _, err := drained(in); !errors.Is(err, fabric.ErrStreamAborted) {
			t.Errorf("Read: %v, want ErrStreamAborted", err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		la.Heal()
		if err := <-aborted; err != nil {
			t.Errorf("Abort: %v", err)
		}
	})
}

// TestStreamWriterReplaced: a reader learns that its writer has gone, although another
// process has the PID.
func TestStreamWriterReplaced(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		brief := func(c *fabric.Config) { c.Lease = time.Second }
		b := join(t, s, "b", brief)
		a, la := joinLink(t, s, "a", brief)
		await(t, b, "a", "b")
		_, in := opened(t, t.Context(), a, b)
		la.Cut()
		la.Kill()
		await(t, b, "b")
		join(t, s, "a", brief)
		await(t, b, "a", "b")
		if _, err := drained(in); !errors.Is(err, fabric.ErrStreamStalled) {
			t.Errorf("Read: %v, want ErrStreamStalled", err)
		}
		noStream(t, b)
	})
}

// TestStreamStalled: of a writer that is cut off for longer than a stream is kept, the
// reader learns that it stalled, and the writer that it was given up. It does not begin
// anew.
func TestStreamStalled(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la, b := writerAndReader(t, s)
		la.CutReplies()
		out, in := opened(t, within(t, 10*time.Minute), a, b)
		la.Cut()
		began := time.Now()
		_, err := drained(in)
		if took := time.Since(began); !errors.Is(err, fabric.ErrStreamStalled) || took > 40*time.Second {
			t.Errorf("Read: %v after %v, want ErrStreamStalled after 30 to 40 s", err, took)
		}
		la.Heal()
		if err := out.Close(); !errors.Is(err, fabric.ErrStreamAborted) {
			t.Errorf("Close: %v, want ErrStreamAborted", err)
		}
		noStream(t, b)
	})
}

// TestStreamQuiet: a stream outlives an outage that is brief, a writer that has nothing
// to write and a reader that does not read, however long.
func TestStreamQuiet(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la, b := writerAndReader(t, s)
		out, in := opened(t, within(t, time.Hour), a, b)
		la.Cut()
		time.Sleep(20 * time.Second)
		la.Heal()
		time.Sleep(2 * time.Minute)
		s.Stop()
		time.Sleep(time.Minute)
		s.Start()
		time.Sleep(time.Minute)
		const size = 16 << 20
		closed := make(chan error, 1)
		go func() {
			_, err := out.Write(make([]byte, size))
			closed <- errors.Join(err, out.Close())
		}()
		time.Sleep(2 * time.Minute)
		if n, err := drained(in); n != size || err != io.EOF {
			t.Errorf("read %d bytes, %v, want %d", n, err, size)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

// TestStreamCanceled: a stream whose context has ended is not taken for a complete one,
// however full its window is.
func TestStreamCanceled(t *testing.T) {
	for name, write := range map[string]func(*fabric.OutStream) error{
		"window has no room for bytes": func(out *fabric.OutStream) error {
			_, err := out.Write(make([]byte, 64<<20))
			return err
		},
		"window has no room for parts": func(out *fabric.OutStream) error {
			for {
				if _, err := out.Write([]byte("x")); err != nil {
					return err
				}
			}
		},
		"window has room": func(out *fabric.OutStream) error {
			if _, err := out.Write([]byte("x")); err != nil {
				return err
			}
			time.Sleep(2 * time.Second)
			_, err := out.Write([]byte("x"))
			return err
		},
		"nothing failed": func(*fabric.OutStream) error {
			time.Sleep(2 * time.Second)
			return context.Canceled
		},
	} {
		for end, f := range map[string]func(*fabric.OutStream) error{
			"Close": (*fabric.OutStream).Close, "Abort": (*fabric.OutStream).Abort,
		} {
			t.Run(name+", "+end, func(t *testing.T) {
				natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
					a, b := join(t, s, "a"), join(t, s, "b")
					await(t, a, "a", "b")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					out, in := opened(t, ctx, a, b)
					time.AfterFunc(time.Second, cancel)
					if err := write(out); !errors.Is(err, context.Canceled) {
						t.Errorf("Write: %v", err)
					}
					if err := f(out); !errors.Is(err, context.Canceled) {
						t.Errorf("%s: %v", end, err)
					}
					if _, err := drained(in); !errors.Is(err, fabric.ErrStreamAborted) {
						t.Errorf("Read: %v, want ErrStreamAborted", err)
					}
					noStream(t, b)
				})
			})
		}
	}
}

// TestStreamCanceledUnread: what was accepted can be read before the error, however late.
func TestStreamCanceledUnread(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, a, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		out, in := opened(t, ctx, a, b)
		n, err := 0, error(nil)
		for ; err == nil; n++ {
			_, err = out.Write(bytes.Repeat([]byte("x"), 10))
		}
		_ = out.Close()
		time.Sleep(2 * time.Minute)
		if got, err := drained(in); got != 10*(n-1) || err == nil || err == io.EOF {
			t.Errorf("read %d bytes of %d, %v", got, 10*(n-1), err)
		}
	})
}
