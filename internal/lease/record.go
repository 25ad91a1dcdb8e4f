package lease

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// Keys of the bucket.
const (
	prefixClaim   = "c."
	prefixPID     = prefixClaim + "p."
	prefixSession = "s."
	prefixWish    = "g."
	prefixFence   = "o."
	prefixValue   = "d."
	// Sessions and PIDs match every session and every PID's claim.
	Sessions = prefixSession + "*"
	PIDs     = prefixPID + "*"
	// Elections match every election's claim.
	Elections      = prefixElection + "*"
	prefixElection = "c.e."
)

// KeyPID, KeySession name a PID's records. KeyElection and KeyRoster name claims,
// KeyView the view of a roster, KeyWish what a PID wants of a balance group. Instead
// of a name, each takes a wildcard.
func KeyPID(pid string) string       { return prefixPID + pid }
func KeySession(pid string) string   { return prefixSession + pid }
func KeyElection(name string) string { return prefixElection + name }
func KeyRoster(name string) string   { return "c.r." + name }
func KeyView(name string) string     { return "v." + name }
func KeyWish(group, pid string) string {
	return prefixWish + group + "." + pid
}

// KeyFence names the record of one index of a balance group, KeyValue what its
// holders keep under a name: the user's own bytes.
func KeyFence(group, index string) string { return prefixFence + group + "." + index }
func KeyValue(group, name string) string  { return prefixValue + group + "." + name }

// Names of rosters.
const RosterMembers = "members"

// RosterGroup names the roster of a balance group.
func RosterGroup(group string) string { return prefixWish + group }

// States of a record.
const (
	stateHeld     = "held"
	stateLeft     = "left"
	stateDead     = "dead"
	stateReleased = "released"
	stateHandover = "handover" // released, for To to take first
)

// A PIDRecord says who has a PID. The revision at which a held one was stored is
// the incarnation; one that is left or dead names the incarnation that ended.
type PIDRecord struct {
	Key   string    `json:"key"`
	State string    `json:"state"`
	PID   string    `json:"pid"`
	Inc   uint64    `json:"inc,omitempty"`
	Host  string    `json:"host,omitempty"`
	Since time.Time `json:"since"`
	// Process names the holder's process to others on its machine, see awaitExit.
	Process string `json:"process,omitempty"`
	// Prev is the state of the record before, for who missed that one.
	Prev  string `json:"prev,omitempty"`
	Proc  string `json:"proc"`
	Nonce string `json:"nonce"`
}

// Held reports whether the PID is somebody's.
func (r PIDRecord) Held() bool { return r.State == stateHeld }

// Left reports whether the incarnation that ended last left by itself.
func (r PIDRecord) Left() bool {
	return r.State == stateLeft || r.State == stateHeld && r.Prev == stateLeft
}

// A SessionRecord says that an incarnation is alive, and what it shows of itself.
type SessionRecord struct {
	Key     string            `json:"key"`
	PID     string            `json:"pid"`
	Inc     uint64            `json:"inc"`
	Host    string            `json:"host,omitempty"`
	Since   time.Time         `json:"since"`
	LeaseMS int64             `json:"lease_ms"`
	Meta    map[string]string `json:"meta,omitempty"`
	N       uint64            `json:"n"`
}

// Lease returns the lease that the record states.
func (r SessionRecord) Lease() time.Duration { return time.Duration(r.LeaseMS) * time.Millisecond }

// MaxMeta bounds what a process shows of itself, in bytes of its keys and values.
const MaxMeta = 512

// What a record may hold of it: bytes that are no text become longer in JSON. More
// would let one member fill the view, which everybody needs.
const (
	maxMetaRead = 3 * MaxMeta
	maxHost     = 255
)

// bounded reports whether r is no larger than its writer could have made it.
func (r SessionRecord) bounded() bool {
	size := 0
	for k, v := range r.Meta {
		size += len(k) + len(v)
	}
	return size <= maxMetaRead && len(r.Host) <= maxHost
}

// A ClaimRecord says which incarnation of which PID holds something, or held it.
type ClaimRecord struct {
	Key   string    `json:"key"`
	State string    `json:"state"`
	PID   string    `json:"pid"`
	Inc   uint64    `json:"inc"`
	Term  uint64    `json:"term"`
	Since time.Time `json:"since"`
	// Token is the revision at which the claim was taken, in a later record of the
	// same term; the first one's own revision is it.
	Token uint64 `json:"token,omitempty"`
	// To is the PID that the claim was given to.
	To string `json:"to,omitempty"`
	// Priority is the holder's, for others to compare with theirs.
	Priority int    `json:"priority,omitempty"`
	Nonce    string `json:"nonce"`
}

// Held reports whether the record names a holder.
func (r ClaimRecord) Held() bool { return r.State == stateHeld }

// A ForeignError says that a key holds something that is not the fabric's: it
// neither grants nor revokes, and is not overwritten.
type ForeignError = kv.ForeignError

// ParsePID reads a PID's claim.
func ParsePID(e kv.Entry) (r PIDRecord, err error) {
	err = parse(e, &r)
	if err == nil && (r.Key != e.Key || e.Key != KeyPID(r.PID) || r.State != stateHeld && r.State != stateLeft && r.State != stateDead) {
		err = &ForeignError{Key: e.Key}
	}
	return r, err
}

// ParseSession reads a session.
func ParseSession(e kv.Entry) (r SessionRecord, err error) {
	err = parse(e, &r)
	if err == nil && (r.Key != e.Key || e.Key != KeySession(r.PID) || r.Inc == 0 || r.LeaseMS <= 0 || r.LeaseMS > kv.MaxLease.Milliseconds() || !r.bounded()) {
		err = &ForeignError{Key: e.Key}
	}
	return r, err
}

// ParseClaim reads a claim.
func ParseClaim(e kv.Entry) (r ClaimRecord, err error) {
	err = parse(e, &r)
	if err == nil && (r.Key != e.Key || r.State != stateHeld && r.State != stateReleased && r.State != stateHandover) {
		err = &ForeignError{Key: e.Key}
	}
	return r, err
}

// Verify reports a record, of any key, that is not the fabric's.
func Verify(e kv.Entry) error {
	var err error
	switch {
	case strings.HasPrefix(e.Key, prefixPID):
		_, err = ParsePID(e)
	case strings.HasPrefix(e.Key, prefixSession):
		_, err = ParseSession(e)
	case strings.HasPrefix(e.Key, prefixClaim):
		_, err = ParseClaim(e)
	case strings.HasPrefix(e.Key, prefixValue):
	default:
		var r struct {
			Key string `json:"key"`
		}
		if err = parse(e, &r); err == nil && r.Key != e.Key {
			err = &ForeignError{Key: e.Key}
		}
	}
	return err
}

func parse(e kv.Entry, r any) error {
	if err := json.Unmarshal(e.Value, r); err != nil {
		return &ForeignError{Key: e.Key}
	}
	return nil
}

// encode cannot fail: records hold strings, numbers and times.
func encode(r any) []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return data
}
