package natstest

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// echo starts a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	p := NewProxy(t, echo(t), 1)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	// say returns how long the answer to text took; ok is false if none came in time.
	say := func(text string, limit time.Duration) (time.Duration, bool) {
		began := time.Now()
		if _, err := io.WriteString(c, text); err != nil {
			return 0, false
		}
		c.SetReadDeadline(began.Add(limit))
		buf := make([]byte, len(text))
		if _, err := io.ReadFull(c, buf); err != nil {
			return 0, false
		}
		if string(buf) != text {
			t.Fatalf("got %q, want %q", buf, text)
		}
		return time.Since(began), true
	}
	if _, ok := say("hello", 10*time.Second); !ok {
		t.Fatal("no answer through a sound proxy")
	}
	p.Delay(60 * time.Millisecond)
	if took, ok := say("late", 10*time.Second); !ok || took < 120*time.Millisecond {
		t.Errorf("answer after %v (%v), want 120 ms at least", took, ok)
	}
	p.Heal()
	p.Lose(1)
	if took, ok := say("lost", 10*time.Second); !ok || took < 2*lossLeast {
		t.Errorf("answer after %v (%v), want %v at least", took, ok, 2*lossLeast)
	}
	p.Heal()
	for name, cut := range map[string]func(){
		"Cut": p.Cut, "ToServer": func() { p.CutOneWay(ToServer) }, "ToClient": func() { p.CutOneWay(ToClient) },
	} {
		cut()
		if _, ok := say("x", 50*time.Millisecond); ok {
			t.Errorf("%s: an answer", name)
		}
		p.Heal()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("%s: what was held back did not come: %v", name, err)
		}
	}
	p.Reset()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
		t.Errorf("after Reset: %v, want a reset", err)
	}
	c = dial()
	if _, ok := say("again", 10*time.Second); !ok {
		t.Error("no answer on a new connection")
	}
}
