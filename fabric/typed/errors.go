package typed

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/natsfabric/natsfabric/fabric"
)

// Errors that callers branch on with errors.Is. Where the other side is at fault,
// the error also wraps a [*fabric.RemoteError] with the Code beside it.
var (
	// ErrUnknownType: the receiver has no handler for the type, or the answer is of
	// another type than was asked for.
	ErrUnknownType = errors.New("typed: unknown type")
	// ErrUnknownCodec: the receiver, or for an answer the caller, does not take the codec.
	ErrUnknownCodec = errors.New("typed: unknown codec")
	// ErrDecode: the bytes are no encoding of the type.
	ErrDecode = errors.New("typed: cannot decode")
	// ErrEncode: the value cannot be encoded. Nothing was sent, or, with a Code,
	// the request was handled and its answer could not be sent.
	ErrEncode = errors.New("typed: cannot encode")
)

// Codes of the [fabric.RemoteError] that a refused message is answered with.
const (
	CodeUnknownType  = "UnknownType"
	CodeUnknownCodec = "UnknownCodec"
	CodeDecode       = "DecodeFailed"
	CodeEncode       = "EncodeFailed"
)

// codes says which code travels for which error.
var codes = map[error]string{
	ErrUnknownType:  CodeUnknownType,
	ErrUnknownCodec: CodeUnknownCodec,
	ErrDecode:       CodeDecode,
	ErrEncode:       CodeEncode,
}

// A TypeError says why a type cannot be handled.
type TypeError struct {
	Type   reflect.Type
	Reason string
}

// Error names the type and the reason.
func (e *TypeError) Error() string { return fmt.Sprintf("typed: type %v: %s", e.Type, e.Reason) }

// A refusal is an error of ours that travels with its code. Its text does not
// repeat what the code says.
type refusal struct {
	category error
	remote   fabric.RemoteError
}

func refuse(category error, format string, args ...any) error {
	return &refusal{category, fabric.RemoteError{Code: codes[category], Message: fmt.Sprintf(format, args...)}}
}

func (r *refusal) Error() string   { return r.remote.Message }
func (r *refusal) Unwrap() []error { return []error{r.category, &r.remote} }

// explain puts the category of what the other side answered before err, which is
// about a value of the type name.
func explain(err error, name string) error {
	e, ok := errors.AsType[*fabric.RemoteError](err)
	if !ok {
		return err
	}
	for category, code := range codes {
		if code == e.Code {
			return fmt.Errorf("%w: %s: %w", category, name, err)
		}
	}
	return err
}

// local makes a refusal an error for this side.
func local(err error, name string) error {
	if r, ok := errors.AsType[*refusal](err); ok {
		return fmt.Errorf("%w: %s: %s", r.category, name, r.remote.Message)
	}
	return err
}
