package fabric

import (
	"cmp"
	"fmt"
	"time"
)

// Defaults of [Mailbox].
const (
	DefaultMailAttempts = 5
	DefaultMailBackoff  = time.Second
	DefaultMailInFlight = 256
	DefaultMailQuota    = 10_000
	DefaultMailBytes    = 256 << 20
	DefaultMailAge      = 7 * 24 * time.Hour
)

// maxMailBackoff bounds the time between two attempts.
const maxMailBackoff = time.Minute

// A Mailbox receives the messages of Mode [Durable]: those that were sent to the PID
// while nobody held it, before it first joined, and now. It belongs to the PID, and
// goes on when the next process takes that. Its messages come to Receive, Messages and
// Handle like others, and each must be finished with [Message.Done], which Handle does
// by itself.
//
// A message comes again if Done says that it failed, and if the process ends before
// Done: when the next one holds the PID, at the latest a Lease later. One that was done
// is not handed out again by the same process; to the next it may be, if Done's word
// had not reached the server. Messages of one sender come in the order in which they
// were stored, but for those that come again; with InFlight 1 those do, too, and each
// waits until the one before is done.
//
// A message that has failed Attempts times becomes a dead letter, as does one that is
// not what a fabric's process sends: see [Node.DeadLetters].
type Mailbox struct {
	// On makes the mailbox; it needs a PID that is named. A process that joins without
	// it leaves a mailbox that the PID has as it is. With a Role below [RoleAdmin] it
	// must be there: see [CreateMailboxes].
	On bool

	// Attempts is how often a message is handed out before it becomes a dead letter,
	// and Backoff the time before the second; it doubles each time, up to a minute.
	// That a process ended while the message waited in its inbox counts as an attempt,
	// too. Default [DefaultMailAttempts] and [DefaultMailBackoff].
	Attempts int
	Backoff  time.Duration

	// InFlight bounds the messages that were fetched and are not done. Default
	// [DefaultMailInFlight].
	InFlight int

	// What follows counts when this node is the one that creates the fabric's mail
	// streams, at the first Join with a Mailbox, or the first message of Mode Durable.
	// Later the streams are left as they are.

	// Quota bounds the messages of one sender to one receiver, and Bytes those of all
	// together, that wait: further ones are refused with [ErrMailboxFull]. Default
	// [DefaultMailQuota] and [DefaultMailBytes].
	Quota int
	Bytes int64
	// Age is how long a message is kept for a receiver that does not come. A mailbox
	// that nobody opened for so long is given up. Default [DefaultMailAge].
	Age time.Duration
}

// checkMailbox checks c.Mailbox, before c.PID has its default.
func (c *Config) checkMailbox() error {
	m := c.Mailbox
	switch {
	case m.Attempts < 0 || m.Backoff < 0 || m.InFlight < 0 || m.Quota < 0 || m.Bytes < 0 || m.Age < 0:
		return &ConfigError{"Mailbox", "a bound is negative"}
	case m.Age != 0 && m.Age < time.Minute:
		return &ConfigError{"Mailbox", fmt.Sprintf("Age %v is less than a minute", m.Age)}
	case !m.On:
	case c.PID == "":
		return &ConfigError{"Mailbox", "it needs a PID: nobody would find the one chosen at random again"}
	case c.Passive:
		return &ConfigError{"Mailbox", "a passive node has none"}
	case c.Inbox.Off:
		return &ConfigError{"Mailbox", "it cannot be combined with Inbox.Off"}
	}
	return nil
}

// withDefaults fills in what the receiver needs.
func (m Mailbox) withDefaults() Mailbox {
	m.Attempts = cmp.Or(m.Attempts, DefaultMailAttempts)
	m.Backoff = cmp.Or(m.Backoff, DefaultMailBackoff)
	m.InFlight = cmp.Or(m.InFlight, DefaultMailInFlight)
	return m
}
