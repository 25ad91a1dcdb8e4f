package election

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// expected begins the headers of a guard, which are the publisher's; rollup is one that
// would have the fence's record removed.
const (
	expected = "nats-expected-"
	rollup   = "nats-rollup"
)

// lookAfter is after how many attempts that nobody received the stream is looked at: a
// change of its leader, in which nobody says how it is, has mostly passed.
const lookAfter = 8

// admit reports why m can never be stored. The stream may have other subjects than it
// had.
func (p *StreamPublisher) admit(ctx context.Context, m *nats.Msg) error {
	if m.Subject == p.subject {
		return &ConfigError{"subject", "it is the fence's"}
	}
	for key := range m.Header {
		if key := strings.ToLower(key); strings.HasPrefix(key, expected) || key == rollup {
			return &ConfigError{"header", key + " is not for a fenced stream"}
		}
	}
	p.mu.Lock()
	subjects := p.subjects
	p.mu.Unlock()
	if covered(m.Subject, subjects) == nil {
		return nil
	}
	return p.look(ctx, m.Subject)
}

// look asks the server whether subject is one of the stream's.
func (p *StreamPublisher) look(ctx context.Context, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	s, err := p.js.Stream(ctx, p.name)
	if err != nil {
		return err
	}
	subjects := s.CachedInfo().Config.Subjects
	p.mu.Lock()
	p.subjects = subjects
	p.mu.Unlock()
	return covered(subject, subjects)
}

// lost reports that nobody received attempt n because the stream, or its subject, is
// gone. Else err says nothing, and the stream may have no leader for a moment.
func (p *StreamPublisher) lost(ctx context.Context, n int, subject string) error {
	if n%lookAfter != lookAfter-1 {
		return nil
	}
	err := p.look(ctx, subject)
	if errors.Is(err, ErrConfig) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	return nil
}

// covered returns an error unless subject is a literal one that one of filters matches.
func covered(subject string, filters []string) error {
	if !literal(subject) {
		return &ConfigError{"subject", fmt.Sprintf("%q is none to publish to", subject)}
	}
	for _, f := range filters {
		if matches(subject, f) {
			return nil
		}
	}
	return &ConfigError{"subject", fmt.Sprintf("%q is not the stream's, which has %q", subject, filters)}
}

func literal(subject string) bool {
	for t := range strings.SplitSeq(subject, ".") {
		if t == "" || t == "*" || t == ">" || strings.ContainsAny(t, " \t\r\n") {
			return false
		}
	}
	return true
}

// matches reports whether filter, which may have wildcards, matches a literal subject.
func matches(subject, filter string) bool {
	for {
		want, filters, more := strings.Cut(filter, ".")
		if want == ">" {
			return true
		}
		token, tokens, rest := strings.Cut(subject, ".")
		if want != "*" && want != token || more != rest {
			return false
		}
		if !more {
			return true
		}
		filter, subject = filters, tokens
	}
}
