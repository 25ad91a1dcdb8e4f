package tests

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/permission"
)

// A realm is a server whose users are the processes of the fabric t/production,
// each with the permissions of its role and no more, in one of the layouts of
// docs/SECURITY.md.
type realm struct {
	t      *testing.T
	layout permission.Layout
	server *natstest.Server
	roles  map[fabric.PID]fabric.Role
	secret string // everybody's password
}

// cast is who is in a realm.
var cast = map[fabric.PID]fabric.Role{
	"root": fabric.RoleAdmin, "c1": fabric.RoleCandidate, "c2": fabric.RoleCandidate,
	"m1": fabric.RoleMember, "m2": fabric.RoleMember, "mallory": fabric.RoleMember, "o1": fabric.RoleObserver,
}

func newRealm(t *testing.T, layout permission.Layout) *realm {
	t.Helper()
	r := &realm{t: t, layout: layout, roles: cast, secret: rand.Text()}
	var users []permission.User
	for pid, role := range cast {
		users = append(users, permission.User{
			Config: r.config(pid), Scope: fabric.Scope{Role: role}, Credential: fmt.Sprintf("%q", r.secret),
		})
	}
	slices.SortFunc(users, func(a, b permission.User) int {
		return strings.Compare(string(a.Config.PID), string(b.Config.PID))
	})
	conf, err := permission.Accounts(layout, users)
	if err != nil {
		t.Fatal(err)
	}
	r.server = natstest.Start(t, func(o *server.Options) {
		if err := o.ProcessConfigString(conf); err != nil {
			t.Fatalf("%v\n%s", err, conf)
		}
	})
	return r
}

func (r *realm) config(pid fabric.PID) fabric.Config {
	return fabric.Config{Cluster: "t", PID: pid}
}

// as is what pid joins with, as the user that it is.
func (r *realm) as(pid fabric.PID, tune ...func(*fabric.Config)) fabric.Config {
	cfg := r.config(pid)
	cfg.URL, cfg.Role, cfg.Logger = r.server.URL(), r.roles[pid], slog.New(slog.NewTextHandler(r.t.Output(), nil)).With("node", string(pid))
	cfg.Inbox.MembersOnly = true
	cfg.NATS = []nats.Option{nats.UserInfo(string(pid), r.secret)}
	if r.layout != permission.Shared {
		cfg.Control = []nats.Option{nats.UserInfo(string(pid)+".ctl", r.secret)}
	}
	for _, f := range tune {
		f(&cfg)
	}
	return cfg
}

// join joins as pid, with what its user may do.
func (r *realm) join(pid fabric.PID, tune ...func(*fabric.Config)) *fabric.Node {
	r.t.Helper()
	n, err := fabric.Join(within(r.t, patience), r.as(pid, tune...))
	if err != nil {
		r.t.Fatalf("join as %s: %v\n%s", pid, err, r.server.Logs())
	}
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), patience)
		defer cancel()
		if err := n.Leave(ctx); err != nil {
			r.t.Logf("leave %s: %v", pid, err)
		}
	})
	return n
}

// found makes the bucket: the admin's one task.
func (r *realm) found() {
	r.t.Helper()
	if err := r.join("root").Leave(within(r.t, patience)); err != nil {
		r.t.Fatal(err)
	}
}

// refusals returns the lines of the server's log that report a violation.
func (r *realm) refusals() []string { return violations(r.server.Logs()) }

func violations(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "Violation") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// everywhere runs f in each layout, beside other tests.
func everywhere(t *testing.T, f func(t *testing.T, r *realm)) {
	t.Parallel()
	for _, layout := range permission.Layouts {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			f(t, newRealm(t, layout))
		})
	}
}

// An attacker is somebody with the credentials of a process and a NATS client of
// its own making.
type attacker struct {
	r   *realm
	pid fabric.PID
	// The connections that carry messages and the bucket; one and the same if Shared.
	msg, ctl *nats.Conn
}

func (r *realm) attacker(pid fabric.PID) *attacker {
	r.t.Helper()
	inbox := nats.CustomInboxPrefix(fabric.InboxPrefix("t", "", pid))
	a := &attacker{r: r, pid: pid, msg: r.server.Connect(nats.UserInfo(string(pid), r.secret), inbox, nats.NoEcho())}
	a.ctl = a.msg
	if r.layout != permission.Shared {
		a.ctl = r.server.Connect(nats.UserInfo(string(pid)+".ctl", r.secret), inbox, nats.NoEcho())
	}
	return a
}

// refused does something on a connection, and reports whether the server refused it
// for want of a permission.
func (a *attacker) refused(nc *nats.Conn, do func() error) bool {
	a.r.t.Helper()
	before := nc.LastError()
	if err := do(); err != nil {
		a.r.t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil {
		a.r.t.Fatal(err)
	}
	after := nc.LastError()
	return after != before && errors.Is(after, nats.ErrPermissionViolation)
}

// mayPublish and maySubscribe report whether the server lets it.
func (a *attacker) mayPublish(nc *nats.Conn, m *nats.Msg) bool {
	a.r.t.Helper()
	return !a.refused(nc, func() error { return nc.PublishMsg(m) })
}

// A subject may be followed by a blank and a queue group.
func (a *attacker) maySubscribe(nc *nats.Conn, subject string) bool {
	a.r.t.Helper()
	subject, queue, _ := strings.Cut(subject, " ")
	return !a.refused(nc, func() error {
		_, err := nc.QueueSubscribeSync(subject, queue)
		return err
	})
}
