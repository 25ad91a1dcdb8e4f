package fabric_test

import (
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

// TestStreamOnce: a stream that was read to its end, and closed, does not begin again
// because its writer has not heard of it.
func TestStreamOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b := join(t, s, "b", patient)
		a, la := joinLink(t, s, "a", patient)
		await(t, a, "a", "b")
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
		b := join(t, s, "b", patient)
		a, la := joinLink(t, s, "a", patient)
		await(t, a, "a", "b")
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
		b := join(t, s, "b", patient)
		a, la := joinLink(t, s, "a", patient)
		await(t, a, "a", "b")
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
