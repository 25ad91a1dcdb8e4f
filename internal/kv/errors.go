package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

var (
	// ErrRefused: the guard did not hold. This attempt was not applied.
	ErrRefused = errors.New("another write came first")
	// ErrBusy: another write under the same guard is in flight (R3 admits one).
	// Not applied; try again.
	ErrBusy = errors.New("another write is in flight")
	// ErrUnknown: no answer. The write may have been applied, or may yet be.
	ErrUnknown = errors.New("outcome unknown")
	// ErrReplaced: the bucket was lost, and perhaps made anew, since it was opened. A
	// write that relies on absence counts for nothing until it is opened again. It
	// comes with ErrRefused.
	ErrReplaced = errors.New("the bucket is not the one that was opened")
	// ErrNoBucket: there is no such stream.
	ErrNoBucket = errors.New("no bucket")
	// ErrNoJetStream: the account has no JetStream.
	ErrNoJetStream = errors.New("no JetStream")
	// ErrOldServer: the JetStream API level is below 1.
	ErrOldServer = errors.New("JetStream API level below 1")
)

// ErrPermission: the server's permissions do not allow what is needed.
var ErrPermission = errors.New("fabric: permission denied")

// A PermissionError names the subject that the server's permissions refuse. It
// wraps [ErrPermission].
type PermissionError struct {
	Op      string // "publish" or "subscribe"
	Subject string
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("%v: allow %s %q", ErrPermission, e.Op, e.Subject)
}
func (e *PermissionError) Unwrap() error { return ErrPermission }

// ErrBucketConfig: a setting of the bucket is not a fabric's.
var ErrBucketConfig = errors.New("fabric: bucket is set up otherwise")

// A ConfigError names a setting of the bucket that a fabric cannot use. It wraps
// [ErrBucketConfig].
type ConfigError struct {
	Bucket, Field string
	Want, Got     any
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("bucket %s: %s is %v, want %v", e.Bucket, e.Field, e.Got, e.Want)
}
func (e *ConfigError) Unwrap() error { return ErrBucketConfig }

// ErrForeign: a record of the bucket is not the fabric's.
var ErrForeign = errors.New("fabric: record is not the fabric's")

// A ForeignError says that a key holds something that is not the fabric's: it
// neither grants nor revokes, and is not overwritten. It wraps [ErrForeign].
type ForeignError struct{ Key string }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("key %s of the bucket holds a record that is not the fabric's", e.Key)
}
func (e *ForeignError) Unwrap() error { return ErrForeign }

// A LeaseError refuses a lease longer than the fabric's longest.
type LeaseError struct{ Lease, Longest time.Duration }

func (e *LeaseError) Error() string {
	return fmt.Sprintf("lease %v is longer than %v, the fabric's longest", e.Lease, e.Longest)
}

// An apiError is JetStream's own. It is definite: nothing was applied.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("JetStream: %s (%d)", e.Description, e.ErrCode)
}

// JetStream's error codes that mean something to us.
const (
	codeTemporarilyDown  = 10008
	codeMessageNotFound  = 10037
	codeNotEnabledForAcc = 10039
	codeNameInUse        = 10058
	codeStreamNotFound   = 10059
	codeWrongLastSeq     = 10071
	codeReplicasAlone    = 10074
	codeNotEnabled       = 10076
	codeInFlight         = 10164
)

func (e *apiError) Is(target error) bool {
	switch e.ErrCode {
	case codeWrongLastSeq:
		return target == ErrRefused
	case codeInFlight:
		return target == ErrBusy
	case codeStreamNotFound:
		return target == ErrNoBucket
	case codeNotEnabled, codeNotEnabledForAcc:
		return target == ErrNoJetStream
	}
	return false
}

// decode reads a JetStream answer into v and returns the error it carries.
func decode(data []byte, v any) error {
	var head struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("JetStream answered with something else: %w", err)
	}
	if head.Error != nil {
		return head.Error
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("JetStream answered with something else: %w", err)
	}
	return nil
}

// definite reports whether err leaves no doubt that nothing was applied.
func definite(err error) bool {
	e, ok := errors.AsType[*apiError](err)
	return ok && e.ErrCode != codeTemporarilyDown
}

// unknown wraps a failed round trip.
func unknown(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
		err = errors.New("no answer in time")
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}
