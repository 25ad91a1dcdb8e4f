package mail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/kv"
)

var (
	// ErrNoStream: there is no such stream, and it was not to be made.
	ErrNoStream = errors.New("no mail stream")
	// ErrFull: the server has no room for the message. Definite.
	ErrFull = errors.New("no room in the mail stream")
	// ErrTooLarge: the stream takes no message of that size. Definite.
	ErrTooLarge = errors.New("larger than the mail stream takes")
	// ErrBusy: not stored at the moment; try again.
	ErrBusy = errors.New("the mail stream is busy")
	// ErrForeign: an answer that is none, or another stream's.
	ErrForeign = errors.New("answered by something else")
)

// A ConfigError names a setting of an existing stream that a fabric cannot use.
type ConfigError struct {
	Stream, Field string
	Want, Got     any
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("stream %s: %s is %v, want %v", e.Stream, e.Field, e.Got, e.Want)
}

// JetStream's error codes that mean something to us.
const (
	codeTemporarilyDown = 10008
	codeTooLarge        = 10054
	codeReplicasAlone   = 10074
	codeStoreFailed     = 10077 // a limit of the stream, or of its subject
	codeInProcess       = 10158 // a message of this id is being stored
	codeInsufficient    = 10023
	codeNoStorage       = 10047
)

// final reports whether trying again cannot help.
func final(err error) bool {
	if errors.Is(err, ErrNoStream) || errors.Is(err, kv.ErrNoJetStream) || errors.Is(err, nats.ErrConnectionClosed) {
		return true
	}
	_, config := errors.AsType[*ConfigError](err)
	_, permission := errors.AsType[*kv.PermissionError](err)
	e, api := errors.AsType[*jetstream.APIError](err)
	return config || permission || api && (e.Code/100 == 4 || e.ErrorCode == codeReplicasAlone || e.ErrorCode == codeNoStorage)
}

// category puts the package's own error before one of nats.go's.
func category(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: %w", kv.ErrNoJetStream, err)
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%w: %w", ErrNoStream, err)
	}
	return err
}

// A Place is where a message is stored: JetStream's domain, empty if it has no name, and
// the number in the stream.
type Place struct {
	Domain string
	Seq    uint64
}

// After reports whether p is a later place than q in the same stream.
func (p Place) After(q Place) bool { return p.Domain == q.Domain && p.Seq > q.Seq }

// Stored reads what JetStream answered to a publish to the mail stream. Without an error
// the message is stored, now or, under the same id, before.
func (o *Office) Stored(data []byte) (Place, error) { return stored(o.mailName(), data) }

// Parked is [Office.Stored] for the stream of dead letters.
func (o *Office) Parked(data []byte) (Place, error) { return stored(o.deadName(), data) }

// Definite reports whether an error of Stored refuses a message and not only one attempt
// to store it: then no attempt before that one was stored either. The server looks for the
// id before it says that a limit is reached, and a size is too large each time. Other
// refusals, those of an account's limits for one, come before it looks for the id.
func Definite(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == codeStoreFailed || e.ErrorCode == codeTooLarge)
}

// plainAck returns the place that data acknowledges. It is not ok unless data is, byte for
// byte, what the server nearly always writes: an acknowledgement without anything special.
// The rest is left to a parser, which takes as long as all else that is done for a message.
func plainAck(stream string, data []byte) (p Place, ok bool) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok || !bytes.HasPrefix(rest, []byte(stream)) {
		return Place{}, false
	}
	rest, ok = bytes.CutPrefix(rest[len(stream):], []byte(`"`))
	domain, has := bytes.CutPrefix(rest, []byte(`,"domain":"`))
	if has {
		if domain, rest, has = bytes.Cut(domain, []byte(`"`)); !has || bytes.IndexByte(domain, '\\') >= 0 {
			return Place{}, false
		}
		p.Domain = string(domain)
	}
	rest, plain := bytes.CutPrefix(rest, []byte(`,"seq":`))
	digits, end := bytes.CutSuffix(rest, []byte("}"))
	p.Seq = number(digits)
	if !ok || !plain || !end || p.Seq == 0 {
		return Place{}, false
	}
	return p, true
}

// number reads a decimal number above 0, without more; 0 if b is none.
func number(b []byte) (n uint64) {
	if len(b) > 19 || len(b) > 0 && b[0] == '0' { // it may overflow
		return 0
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

func stored(stream string, data []byte) (Place, error) {
	if p, ok := plainAck(stream, data); ok {
		return p, nil
	}
	var ack struct {
		Stream string              `json:"stream"`
		Domain string              `json:"domain"`
		Seq    uint64              `json:"seq"`
		Error  *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return Place{}, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	switch {
	case ack.Error != nil && (ack.Stream == stream || ack.Stream == ""):
		return Place{}, refusal(ack.Error)
	case ack.Error != nil, ack.Stream != stream, ack.Seq == 0:
		return Place{}, fmt.Errorf("%w: stream %q", ErrForeign, ack.Stream)
	}
	return Place{ack.Domain, ack.Seq}, nil
}

// refusal puts the package's own error before JetStream's.
func refusal(e *jetstream.APIError) error {
	switch e.ErrorCode {
	case codeStoreFailed, codeInsufficient, codeNoStorage:
		return fmt.Errorf("%w: %w", ErrFull, e)
	case codeTooLarge:
		return fmt.Errorf("%w: %w", ErrTooLarge, e)
	case codeInProcess, codeTemporarilyDown:
		return fmt.Errorf("%w: %w", ErrBusy, e)
	}
	if e.Code == 503 {
		return fmt.Errorf("%w: %w", ErrBusy, e)
	}
	return e
}
