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
	// ErrForeign: an acknowledgement that is none, or another stream's.
	ErrForeign = errors.New("acknowledged by something else")
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

// Stored reads what JetStream answered to a publish to the mail stream. Without an error
// the message is stored, now or, under the same id, before, and has the place seq.
func (o *Office) Stored(data []byte) (seq uint64, err error) { return stored(o.mailName(), data) }

// Parked is [Office.Stored] for the stream of dead letters.
func (o *Office) Parked(data []byte) (seq uint64, err error) { return stored(o.deadName(), data) }

// plainAck returns the place that data acknowledges, 0 unless it is, byte for byte, what
// the server nearly always writes: an acknowledgement without anything special. The rest
// is left to a parser, which takes as long as all else that is done for a message.
func plainAck(stream string, data []byte) (seq uint64) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok || !bytes.HasPrefix(rest, []byte(stream)) {
		return 0
	}
	rest, ok = bytes.CutPrefix(rest[len(stream):], []byte(`"`))
	if domain, has := bytes.CutPrefix(rest, []byte(`,"domain":"`)); has {
		_, rest, has = bytes.Cut(domain, []byte(`"`))
		ok = ok && has
	}
	rest, plain := bytes.CutPrefix(rest, []byte(`,"seq":`))
	digits, end := bytes.CutSuffix(rest, []byte("}"))
	if !ok || !plain || !end {
		return 0
	}
	return number(digits)
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

func stored(stream string, data []byte) (seq uint64, err error) {
	if seq := plainAck(stream, data); seq > 0 {
		return seq, nil
	}
	var ack struct {
		Stream string              `json:"stream"`
		Seq    uint64              `json:"seq"`
		Error  *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if ack.Error == nil {
		if ack.Stream != stream || ack.Seq == 0 {
			return 0, fmt.Errorf("%w: stream %q", ErrForeign, ack.Stream)
		}
		return ack.Seq, nil
	}
	switch ack.Error.ErrorCode {
	case codeStoreFailed, codeInsufficient, codeNoStorage:
		return 0, fmt.Errorf("%w: %w", ErrFull, ack.Error)
	case codeTooLarge:
		return 0, fmt.Errorf("%w: %w", ErrTooLarge, ack.Error)
	case codeInProcess, codeTemporarilyDown:
		return 0, fmt.Errorf("%w: %w", ErrBusy, ack.Error)
	}
	if ack.Error.Code == 503 {
		return 0, fmt.Errorf("%w: %w", ErrBusy, ack.Error)
	}
	return 0, ack.Error
}
