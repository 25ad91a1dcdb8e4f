package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
)

// permissions tries each permission that a process in the role needs.
func (d *doctor) permissions(needed fabric.Permissions) {
	if d.nc == d.ctl {
		needed = fabric.Permissions{Messages: needed.All()}
	}
	tried, refused := 0, 0
	for nc, subjects := range map[*nats.Conn]fabric.Subjects{d.ctl: needed.Control, d.nc: needed.Messages} {
		tried += len(subjects.Publish) + len(subjects.Subscribe)
		refused += d.attempt(nc, subjects)
	}
	if refused == 0 {
		d.found.add("permissions", healthy, "", "all %d that a process of role %v needs", tried, d.role)
	}
}

// attempt tries the permissions of one connection, and returns how many it lacks.
func (d *doctor) attempt(nc *nats.Conn, needed fabric.Subjects) (refused int) {
	for _, subject := range needed.Publish {
		if !d.try(nc, func() error { return nc.PublishMsg(harmless(subject)) }) {
			refused++
			d.missing("publish", subject)
		}
	}
	for _, subject := range needed.Subscribe {
		var sub *nats.Subscription
		ok := d.try(nc, func() (err error) {
			subject, group, _ := strings.Cut(subject, " ")
			sub, err = nc.QueueSubscribe(subject, group, func(*nats.Msg) {})
			return err
		})
		if sub != nil {
			sub.Unsubscribe() // one that was refused is gone
		}
		if !ok {
			refused++
			d.missing("subscribe", subject)
		}
	}
	return refused
}

func (d *doctor) missing(op, subject string) {
	fix := fmt.Sprintf("allow %s %q to this user; all of it: fabric-node permissions -k %s -e %s -i %s --%v",
		op, subject, d.app.opts.cluster, d.app.opts.env, d.pid, d.role)
	d.found.add("permissions", critical, fix, "may not %s %q, which role %v needs", op, subject, d.role)
}

// try reports whether the server lets us do something.
func (d *doctor) try(nc *nats.Conn, do func() error) bool {
	before := nc.LastError()
	if err := do(); err != nil {
		return false
	}
	if err := nc.FlushTimeout(d.app.opts.timeout); err != nil {
		return false
	}
	after := nc.LastError()
	return after == before || !errors.Is(after, nats.ErrPermissionViolation)
}

// harmless is a message to one of the subjects that a pattern matches, which has no
// effect: a name that nobody can have, no reply subject, a request that is not
// valid, or a record whose guard cannot hold. Of a broadcast the members drop and
// count one message.
func harmless(pattern string) *nats.Msg {
	tokens := strings.Split(pattern, ".")
	for i, t := range tokens {
		if t == "*" || t == ">" {
			tokens[i] = "_"
		}
	}
	m := nats.NewMsg(strings.Join(tokens, "."))
	m.Data = []byte("{")
	m.Header.Set("Nats-Expected-Last-Subject-Sequence", "18446744073709551615")
	m.Header.Set("Nats-Expected-Stream", "none")
	return m
}

// limits looks at what the system lets this process have.
func (d *doctor) limits() {
	files, ok := openFiles()
	switch {
	case !ok:
	case files < wantFiles:
		d.found.add("limits", warning, "raise the limit (ulimit -n, LimitNOFILE)", "%d open files are allowed, a server needs one for each client", files)
	default:
		d.found.add("limits", healthy, "", "%d open files are allowed", files)
	}
}
