package tests

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/permission"
)

func boxed(c *fabric.Config) { c.Mailbox.On, c.Mailbox.Backoff = true, 10*time.Millisecond }

// foundMail has an admin make the bucket, the mail streams and the mailbox of m1.
func (r *realm) foundMail() {
	r.t.Helper()
	r.found()
	if err := fabric.CreateMailboxes(within(r.t, patience), r.as("root"), "m1"); err != nil {
		r.t.Fatal(err)
	}
}

// TestMailSuffices: with the allow-list of its role each process sends durable messages,
// and a member receives those that waited and those that come, finishes them, and parks
// what it cannot handle, in each layout. The server refuses nothing.
func TestMailSuffices(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.foundMail()
		c1, o1 := r.join("c1"), r.join("o1")
		ctx := within(t, patience)
		const each = 150 // more than one request fetches
		post := func(from *fabric.Node, text string) {
			if err := from.SendMsg(ctx, &fabric.Message{To: "m1", Mode: fabric.Durable, Type: "Note", Data: []byte(text)}); err != nil {
				t.Fatalf("%s to m1: %v", from.PID(), err)
			}
		}
		for i := range each {
			post(c1, fmt.Sprint("c1-", i))
			post(o1, fmt.Sprint("o1-", i))
		}
		m1 := r.join("m1", boxed)
		for next := map[fabric.PID]int{}; next["c1"] < each || next["o1"] < each; {
			m, err := m1.Receive(ctx)
			if err != nil {
				t.Fatalf("%v; received %v", err, next)
			}
			if want := fmt.Sprint(m.From, "-", next[m.From]); string(m.Data) != want || m.Type != "Note" || m.Mode != fabric.Durable {
				t.Errorf("received %q of type %q, want %s", m.Data, m.Type, want)
			}
			next[m.From]++
			if err := m.Done(ctx, nil); err != nil {
				t.Error(err)
			}
		}
		post(c1, "poison")
		for attempt := 1; attempt <= fabric.DefaultMailAttempts; attempt++ {
			m, err := m1.Receive(ctx)
			if err != nil || string(m.Data) != "poison" || m.Attempt() != attempt {
				t.Fatalf("attempt %d: %v, %v", attempt, m, err)
			}
			if err := m.Done(ctx, fmt.Errorf("not today")); err != nil {
				t.Error(err)
			}
		}
		for m1.Stats().Parked == 0 && ctx.Err() == nil {
			pauseFor(ctx, 10*time.Millisecond)
		}
		leave(t, m1)
		post(o1, "later")
		m1 = r.join("m1", boxed)
		m, err := m1.Receive(ctx)
		if err != nil || string(m.Data) != "later" || m.From != "o1" {
			t.Fatalf("after a restart: %v, %v", m, err)
		}
		if err := m.Done(ctx, nil); err != nil {
			t.Error(err)
		}
		// Making what is there changes nothing; who is no admin may not.
		if err := fabric.CreateMailboxes(ctx, r.as("root"), "m1", "c1"); err != nil {
			t.Error(err)
		}
		root, dead := r.join("root"), 0
		for d, err := range root.DeadLetters(ctx) {
			if err != nil || d.Message.From != "c1" || d.Reason != "not today" || string(d.Message.Data) != "poison" {
				t.Errorf("dead letter %+v, %v", d, err)
			}
			dead++
		}
		if dead != 1 {
			t.Errorf("%d dead letters, want 1", dead)
		}
		if lines := r.refusals(); len(lines) > 0 {
			t.Errorf("the server refused %d times:\n%s", len(lines), lines)
		}
		if err := fabric.CreateMailboxes(ctx, r.as("mallory"), "m2"); !errors.Is(err, fabric.ErrPermission) {
			t.Errorf("CreateMailboxes as a member = %v, want ErrPermission", err)
		}
		if err := joining(ctx, r.as("m2", boxed)); !errors.Is(err, fabric.ErrNoMail) {
			t.Errorf("Join with a mailbox that nobody made = %v, want ErrNoMail", err)
		}
	})
}

// TestMailAimed: an answer of JetStream's aimed at a mailbox is stored there in an
// account that has the streams, and handed to nobody. With an account for each process
// it is not stored. A letter arrives all the same.
func TestMailAimed(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.foundMail()
		c1, m1 := r.join("c1"), r.join("m1", boxed)
		mallory := r.attacker("mallory")
		for question, data := range questions {
			m := nats.NewMsg(abbreviations.Replace(question))
			m.Reply, m.Data = "fab.t.production.d.m1.c1", []byte(data)
			if err := mallory.ctl.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := mallory.ctl.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		ctx := within(t, patience)
		if err := c1.SendMsg(ctx, &fabric.Message{To: "m1", Mode: fabric.Durable, Data: []byte("letter")}); err != nil {
			t.Fatal(err)
		}
		m, err := m1.Receive(ctx)
		if err != nil || m.From != "c1" || string(m.Data) != "letter" {
			t.Fatalf("Receive = %v, %v, want the letter", m, err)
		}
		if err := m.Done(ctx, nil); err != nil {
			t.Error(err)
		}
		none, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if m, err := m1.Receive(none); err == nil {
			t.Errorf("received %q from %s", m.Data, m.From)
		}
		// What mallory publishes as itself, without an id, is a dead letter in each layout.
		root, isolated := r.join("root"), r.layout == permission.Isolated
		var dead map[fabric.PID]int
		for dead["mallory"] == 0 || !isolated && dead["c1"] == 0 {
			dead = map[fabric.PID]int{}
			for d, err := range root.DeadLetters(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				dead[d.Message.From]++
			}
		}
		if isolated != (dead["c1"] == 0) || dead["mallory"] != 1 {
			t.Errorf("dead letters by sender: %v", dead)
		}
		if lines := r.refusals(); len(lines) > 0 {
			t.Errorf("the server refused %d times:\n%s", len(lines), lines)
		}
	})
}
