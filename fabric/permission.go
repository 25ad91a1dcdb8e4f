package fabric

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
	"github.com/natsfabric/natsfabric/internal/token"
)

// A Role says what a process may do in a fabric. Each includes the one before.
type Role uint8

const (
	// RoleObserver: join with Config.Passive. It reads everything in the bucket,
	// sends to members and asks them, under its PID, and is sent nothing.
	RoleObserver Role = iota + 1
	// RoleMember: hold the PID, be a member and belong to balance groups. It writes
	// its own records, and the fences and values of its groups.
	RoleMember
	// RoleCandidate: lead elections and coordinate rosters. It writes everybody's
	// claims, wishes in groups, and all views: it can end another's session, but not
	// send as another.
	// A fabric needs at least one; two or three survive the loss of one.
	RoleCandidate
	// RoleAdmin: create the bucket and change its settings, write any record; it alone
	// evicts members of balance groups.
	RoleAdmin
)

var roleNames = [...]string{RoleObserver: "observer", RoleMember: "member", RoleCandidate: "candidate", RoleAdmin: "admin"}

// String returns "observer", "member", "candidate" or "admin".
func (r Role) String() string { return roleNames[r] }

// MarshalText writes what String returns.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what String returns.
func (r *Role) UnmarshalText(text []byte) error {
	i := slices.Index(roleNames[:], string(text))
	if i < int(RoleObserver) {
		return &ConfigError{"Role", fmt.Sprintf("%q is none: observer, member, candidate or admin", text)}
	}
	*r = Role(i)
	return nil
}

// A Scope narrows what a role may do. The zero value of a list means all of them,
// and so does "*".
type Scope struct {
	Role      Role     // required
	Groups    []string // balance groups
	Elections []string
	Topics    []string
	// Services are those that the process may ask, and serve: it gets its share of
	// their requests, never a copy of another's.
	Services []string

	// Micro also allows what Config.Micro needs. To answer plain NATS clients the process
	// may then publish at _INBOX.>, and so forge the answers that others of them wait
	// for; what nodes ask each other and the server is not there.
	Micro bool
}

// Subjects are what a user is allowed to publish and to subscribe to, with the
// wildcards of a NATS server's configuration. A subject to subscribe to may be followed
// by a blank and a queue group, as there: then it is allowed in that group only.
type Subjects struct {
	Publish   []string
	Subscribe []string
}

// Permissions are an allow-list: with it everything that the role is for works, and
// nothing else is allowed. Everything that a node uses is in it, and is put together
// by the code that uses it.
type Permissions struct {
	// Messages are for the connection that carries messages.
	Messages Subjects
	// Control is for the one that carries the bucket: the same one, unless
	// Config.Control makes it another.
	Control Subjects
	// Feed is the one subject of the bucket's account, among those of Control, that
	// is not asked for but listened to.
	Feed string
	// Fetch is the one among those that Control publishes whose answer is many
	// messages: it fetches mail. It is empty for an observer.
	Fetch string
}

// All are the permissions of a single connection.
func (p Permissions) All() Subjects {
	return Subjects{
		Publish:   join(p.Messages.Publish, p.Control.Publish),
		Subscribe: join(p.Messages.Subscribe, p.Control.Subscribe),
	}
}

// Permissions returns what a NATS server must allow a node that joins with c, which
// must have a PID: Cluster, Env, PID and Domain count. They hold for a connection
// that the node makes itself; one of Config.Conn must have [InboxPrefix] as its own.
func (c Config) Permissions(s Scope) (Permissions, error) {
	if c.PID == "" {
		return Permissions{}, &ConfigError{"PID", "permissions are of one PID; it is empty"}
	}
	c, err := Config{Cluster: c.Cluster, Env: c.Env, PID: c.PID, Domain: c.Domain}.withDefaults()
	if err != nil {
		return Permissions{}, err
	}
	return permissionsOf(c, s)
}

// PermissionsTemplate is [Config.Permissions] for the template of a scoped signing
// key: the server puts the user's name where the PID is, so a name must be checked
// with [CheckPID] before a user is signed. A user named * would be everybody.
func (c Config) PermissionsTemplate(s Scope) (Permissions, error) {
	c, err := Config{Cluster: c.Cluster, Env: c.Env, Domain: c.Domain}.withDefaults()
	if err != nil {
		return Permissions{}, err
	}
	c.PID = "{{name()}}"
	return permissionsOf(c, s)
}

// CheckPID reports whether pid can be a process's PID: a [*NameError] if not.
func CheckPID(pid PID) error { return token.CheckPID(string(pid)) }

// InboxPrefix returns where a node's connection awaits the server's answers. It is
// for nats.CustomInboxPrefix, on a connection handed over as Config.Conn.
func InboxPrefix(cluster, env string, pid PID) string {
	return newSubjects(cluster, cmp.Or(env, DefaultEnv), pid).inbox()
}

func permissionsOf(c Config, s Scope) (p Permissions, err error) {
	if s.Role < RoleObserver || s.Role > RoleAdmin {
		return p, &ConfigError{"Role", fmt.Sprintf("%d is none", s.Role)}
	}
	if s.Micro && s.Role == RoleObserver {
		return p, &ConfigError{"Micro", "a passive node is no member"}
	}
	for _, l := range []struct {
		field string
		names *[]string
	}{{"group", &s.Groups}, {"election", &s.Elections}, {"topic", &s.Topics}, {"service", &s.Services}} {
		if len(*l.names) == 0 || slices.Contains(*l.names, "*") {
			*l.names = []string{"*"}
			continue
		}
		for _, name := range *l.names {
			if err := token.Check(l.field, name); err != nil {
				return p, err
			}
		}
	}
	of := newSubjects(c.Cluster, c.Env, c.PID)
	p = Permissions{Messages: s.messages(c, of), Control: s.control(c, of), Feed: of.feed() + ".>"}
	if s.Role >= RoleMember {
		p.Fetch = kv.MailNeedsOf(kv.Name(c.Cluster, c.Env), c.Domain, string(c.PID)).Fetch
	}
	return p, nil
}

// each builds a subject for every name.
func each(names []string, subject func(string) string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = subject(name)
	}
	return out
}

func join(lists ...[]string) (out []string) {
	for _, s := range slices.Concat(lists...) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// messages are the subjects of a connection that carries messages.
func (s Scope) messages(c Config, of subjects) (p Subjects) {
	p.Publish = slices.Concat(
		[]string{of.peer("*"), of.everyone()}, each(s.Topics, of.topic), each(s.Services, of.service),
		[]string{of.chunk("*", "*"), of.reply("*", of.me) + ">", of.signal(signalProbe)})
	p.Subscribe = []string{of.replyAll(), of.signalAll("*"), of.inbox() + ".>"}
	if s.Role >= RoleMember {
		p.Publish = append(p.Publish, of.signal(signalOpen), of.signal(roster.KindSuspect))
		p.Subscribe = slices.Concat(p.Subscribe, []string{of.peerAll(), of.castAll()},
			each(s.Topics, of.topicAll), []string{of.chunkAll()},
			each(s.Services, func(name string) string { return of.serviceAll(name) + " " + of.group() }))
	}
	if s.Role >= RoleCandidate {
		p.Publish = append(p.Publish, of.signal("*"))
	}
	if s.Micro {
		p.Publish = append(p.Publish, inboxPrefix+">")
		p.Subscribe = append(p.Subscribe, microSubjects(c)...)
	}
	return p
}

// control are the subjects of a connection that carries the bucket.
func (s Scope) control(c Config, of subjects) (p Subjects) {
	pid := string(c.PID)
	needs := kv.NeedsOf(kv.Name(c.Cluster, c.Env), c.Domain)
	p.Publish = append(p.Publish, needs.Read...)
	p.Subscribe = []string{of.feed() + ".>", of.inbox() + ".>"}
	write := func(keys ...string) { p.Publish = append(p.Publish, each(keys, needs.Write)...) }
	mail := kv.MailNeedsOf(kv.Name(c.Cluster, c.Env), c.Domain, pid)
	p.Publish = append(append(p.Publish, of.mail("*")), mail.Send...)
	if s.Role >= RoleMember {
		p.Publish = append(p.Publish, of.dead("*"))
		write(lease.KeyPID(pid), lease.KeySession(pid))
		write(each(s.Groups, func(g string) string { return lease.KeyWish(g, pid) })...)
		write(each(s.Groups, func(g string) string { return lease.KeyFence(g, "*") })...)
		write(each(s.Groups, func(g string) string { return lease.KeyValue(g, "*") })...)
		p.Publish = append(p.Publish, mail.Take...)
	}
	if s.Role >= RoleCandidate {
		write(kv.KeyOpen, lease.KeyPID("*"))
		rosters := append([]string{lease.RosterMembers}, each(s.Groups, lease.RosterGroup)...)
		write(each(s.Elections, lease.KeyElection)...)
		write(each(s.Elections, func(e string) string { return lease.KeyEntry(e, "*") })...)
		write(each(rosters, lease.KeyRoster)...)
		write(each(rosters, lease.KeyView)...)
		write(each(s.Groups, func(g string) string { return lease.KeyWish(g, "*") })...)
	}
	if s.Role >= RoleAdmin {
		p.Publish = slices.Concat(p.Publish, needs.Create, needs.Repair, mail.Create, mail.Repair)
		write(">")
	}
	return p
}
