package permission

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Layout says how the processes of a fabric are divided among NATS accounts.
type Layout string

const (
	// Shared: one account. JetStream's answers can be aimed at any subject in it.
	Shared Layout = "shared"
	// Split: messages in one account, the bucket in another; two connections.
	Split Layout = "split"
	// Isolated: messages in one account, the bucket in another, and an account for
	// each process, which imports from the bucket's what the process may write.
	Isolated Layout = "isolated"
)

// Layouts are all of them.
var Layouts = []Layout{Shared, Split, Isolated}

// Names of the accounts.
const (
	AccountShared  = "FABRIC"
	AccountMessage = "FABRIC_MSG"
	AccountControl = "FABRIC_CTL"
)

// A User is one process, and how it proves who it is.
type User struct {
	Config fabric.Config // Cluster, Env, PID, Domain
	Scope  fabric.Scope
	// Credential is the value of the field password, as it is to stand in the
	// file: a variable, $NAME, or a quoted text. NKey is a public key instead.
	Credential string
	NKey       string
}

// Accounts returns the accounts block of a server's configuration for the users.
// In each layout a process has the user name of its PID; in two accounts the one in
// the bucket's is <pid>.ctl, which cannot be a PID.
func Accounts(layout Layout, users []User) (string, error) {
	w := &writer{}
	list := make([]fabric.Permissions, len(users))
	for i, u := range users {
		if u.NKey != "" && layout != Shared {
			return "", fmt.Errorf("PID %s: one key cannot be in two accounts", u.Config.PID)
		}
		var err error
		if list[i], err = u.Config.Permissions(u.Scope); err != nil {
			return "", err
		}
	}
	w.open("accounts {")
	switch layout {
	case Shared:
		w.open(AccountShared + " {")
		w.line("jetstream: enabled")
		w.users(users, "", func(i int) fabric.Subjects { return list[i].All() })
		w.close()
	case Split:
		w.messages(users, list)
		w.open(AccountControl + " {")
		w.line("jetstream: enabled")
		w.users(users, ".ctl", func(i int) fabric.Subjects { return list[i].Control })
		w.close()
	case Isolated:
		w.messages(users, list)
		w.open(AccountControl + " {")
		w.line("jetstream: enabled")
		w.exports(users, list)
		w.close()
		for i := range users {
			w.isolated(users[i], list[i])
		}
	default:
		return "", fmt.Errorf("layout %q: choose one of %v", layout, Layouts)
	}
	w.close()
	return w.String(), nil
}

// Entry returns the entry of one process for a list of users, in one account.
func Entry(u User) (string, error) {
	p, err := u.Config.Permissions(u.Scope)
	if err != nil {
		return "", err
	}
	w := &writer{}
	w.user(u, "", p.All())
	return w.String(), nil
}

// A writer writes blocks, indented.
type writer struct {
	strings.Builder
	depth int
}

func (w *writer) line(format string, args ...any) {
	w.WriteString(strings.Repeat("  ", w.depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *writer) open(text string) { w.line("%s", text); w.depth++ }
func (w *writer) close()           { w.depth--; w.line("}") }
func (w *writer) closeList()       { w.depth--; w.line("]") }

func (w *writer) messages(users []User, list []fabric.Permissions) {
	w.open(AccountMessage + " {")
	w.users(users, "", func(i int) fabric.Subjects { return list[i].Messages })
	w.close()
}

func (w *writer) users(users []User, suffix string, of func(int) fabric.Subjects) {
	w.open("users: [")
	for i, u := range users {
		w.user(u, suffix, of(i))
	}
	w.closeList()
}

func (w *writer) user(u User, suffix string, s fabric.Subjects) {
	w.open("{")
	if u.NKey != "" {
		w.line("nkey: %s", u.NKey)
	} else {
		w.line("user: %q", string(u.Config.PID)+suffix)
		w.line("password: %s", u.Credential)
	}
	w.open("permissions: {")
	w.allow("publish", s.Publish)
	w.allow("subscribe", s.Subscribe)
	w.close()
	w.close()
}

func (w *writer) allow(what string, subjects []string) {
	w.open(what + ": { allow: [")
	for _, s := range subjects {
		w.line("%s", strconv.Quote(s))
	}
	w.depth--
	w.line("] }")
}

// exports lets every account import what its process may write, and no other.
func (w *writer) exports(users []User, list []fabric.Permissions) {
	allowed := map[string][]string{} // accounts, by subject
	var services, streams []string   // in the order of the list
	many := map[string]bool{}        // services that answer more than once
	note := func(order *[]string, key, account string) {
		if allowed[key] == nil {
			*order = append(*order, key)
		}
		allowed[key] = append(allowed[key], account)
	}
	for i, u := range users {
		for _, s := range list[i].Control.Publish {
			note(&services, s, account(u))
		}
		note(&streams, list[i].Feed, account(u))
		many[list[i].Fetch] = true
	}
	w.open("exports: [")
	for _, s := range services {
		response := ""
		if many[s] {
			response = "response: stream, "
		}
		w.line("{ service: %q, %saccounts: [%s] }", s, response, strings.Join(allowed[s], ", "))
	}
	for _, s := range streams {
		w.line("{ stream: %q, accounts: [%s] }", s, strings.Join(allowed[s], ", "))
	}
	w.closeList()
}

// isolated writes the account of one process. What it imports is what it may
// publish, subject for subject, and not more: an answer that it aims at a subject
// comes back to its own account, and from there goes where an import leads.
func (w *writer) isolated(u User, p fabric.Permissions) {
	w.open(account(u) + " {")
	w.open("imports: [")
	for _, s := range p.Control.Publish {
		w.line("{ service: { account: %s, subject: %q } }", AccountControl, s)
	}
	w.line("{ stream: { account: %s, subject: %q } }", AccountControl, p.Feed)
	w.closeList()
	w.users([]User{u}, ".ctl", func(int) fabric.Subjects { return p.Control })
	w.close()
}

// account names the account of one process.
func account(u User) string { return strconv.Quote(AccountControl + "_" + string(u.Config.PID)) }
