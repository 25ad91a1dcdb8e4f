package fabric_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// The mail streams are in the domain that the node names: both ends on a leaf without
// JetStream, the hub keeps the mail.
func TestMailThroughADomain(t *testing.T) {
	port, err := natstest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	hub := serve(t, &server.Options{
		JetStream: true, StoreDir: t.TempDir(), JetStreamDomain: "hub", ServerName: "hub",
		LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: port},
	})
	remote := &url.URL{Scheme: "nats-leaf", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	leaf := serve(t, &server.Options{
		ServerName: "leaf", LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{remote}}}},
	})
	atHub, atLeaf := joinURL(t, hub.ClientURL(), "a", ""), joinURL(t, leaf.ClientURL(), "b", "hub")
	mustPost(t, atHub, "c", "from the hub")
	mustPost(t, atLeaf, "c", "from the leaf")
	c, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: "c", URL: leaf.ClientURL(), Domain: "hub", Logger: logger(t, "c"),
		Mailbox: fabric.Mailbox{On: true, Attempts: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	expectMail(t, c, "from the hub", "from the leaf")
	mustPost(t, atLeaf, fabric.Everyone, "bad")
	done(t, next(t, c), errors.New("no"))
	if dead := awaitLetters(t, atHub, 1); len(dead) != 1 || dead[0].Reason != "no" {
		t.Errorf("dead letters %+v", dead)
	}
	leave(t, c)
}

// A user who may not do what mail needs learns which subject to allow.
func TestMailPermissions(t *testing.T) {
	t.Parallel()
	users := map[string]string{
		"all":      "nothing",
		"info":     "$JS.API.STREAM.INFO.fab_c_production_mail",
		"create":   "$JS.API.STREAM.CREATE.fab_c_production_mail",
		"consumer": "$JS.API.CONSUMER.CREATE.fab_c_production_mail.mb-b.fab.c.production.d.b.*",
		"names":    "$JS.API.CONSUMER.NAMES.fab_c_production_mail",
		"publish":  "fab.c.production.d.x.*",
	}
	s := natstest.Start(t, func(o *server.Options) {
		for name, subject := range users {
			o.Users = append(o.Users, &server.User{Username: name, Password: "p", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{subject}},
			}})
		}
	})
	as := func(user, pid string, tune ...func(*fabric.Config)) (*fabric.Node, error) {
		cfg := fabric.Config{Cluster: "c", PID: fabric.PID(pid), URL: s.URL(), NATS: []nats.Option{nats.UserInfo(user, "p")}, Logger: logger(t, pid)}
		for _, f := range tune {
			f(&cfg)
		}
		n, err := fabric.Join(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() { leave(t, n) })
		}
		return n, err
	}
	refused := func(user string, err error) {
		t.Helper()
		e, ok := errors.AsType[*fabric.PermissionError](err)
		if !ok || e.Op != "publish" || e.Subject != strings.Replace(users[user], "x.*", "x."+user, 1) {
			t.Errorf("%s: %v, want a PermissionError for %s", user, err, users[user])
		}
	}
	for _, user := range []string{"create", "info"} { // there are no streams yet
		n, err := as(user, user)
		if err != nil {
			t.Fatal(err)
		}
		refused(user, post(t.Context(), n, "x", ""))
	}
	all, err := as("all", "all", mailbox)
	if err != nil {
		t.Fatal(err)
	}
	mustPost(t, all, "all", "1")
	expectMail(t, all, "1")
	_, err = as("consumer", "b", mailbox)
	refused("consumer", err)
	for _, user := range []string{"names", "publish"} {
		n, err := as(user, user)
		if err != nil {
			t.Fatal(err)
		}
		mustPost(t, n, "all", "2")
		expectMail(t, all, "2")
		if user == "names" {
			refused(user, post(t.Context(), n, fabric.Everyone, ""))
		} else {
			refused(user, post(t.Context(), n, "x", ""))
		}
	}
}
