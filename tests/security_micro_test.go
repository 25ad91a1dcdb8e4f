package tests

import (
	"errors"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestMicroScope: with the scope Micro a member answers as a micro service, and plain
// NATS clients, and the server refuses nothing. Without it, it does not join as one.
func TestMicroScope(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "root", Password: "p"}}
		for pid, scope := range map[fabric.PID]fabric.Scope{
			"m1": {Role: fabric.RoleMember, Micro: true}, "m2": {Role: fabric.RoleMember},
		} {
			p, err := fabric.Config{Cluster: "t", PID: pid}.Permissions(scope)
			if err != nil {
				t.Fatal(err)
			}
			o.Users = append(o.Users, &server.User{Username: string(pid), Password: "p", Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: p.All().Publish},
				Subscribe: &server.SubjectPermission{Allow: p.All().Subscribe},
			}})
		}
	})
	as := func(pid fabric.PID, role fabric.Role) fabric.Config {
		return fabric.Config{
			Cluster: "t", PID: pid, URL: s.URL(), Role: role, Micro: true,
			NATS: []nats.Option{nats.UserInfo(string(pid), "p")},
		}
	}
	ctx := within(t, patience)
	for _, c := range []fabric.Config{as("root", fabric.RoleAdmin), as("m1", fabric.RoleMember)} {
		n, err := fabric.Join(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		defer leave(t, n)
		if c.PID == "m1" {
			go upper(ctx, n)
		}
	}
	plain := s.Connect(nats.UserInfo("root", "p"))
	for subject, want := range map[string]string{
		"$SRV.PING.fab-t.production_m1": "", "$SRV.INFO.fab-t.production_m1": "", "$SRV.STATS.fab-t.production_m1": "",
		"fab.t.production.u.m1.ext": "HELLO",
	} {
		m, err := plain.Request(subject, []byte("hello"), patience)
		if err != nil || want != "" && string(m.Data) != want {
			t.Errorf("%s: %v, %v", subject, m, err)
		}
	}
	if logs := s.Logs(); violations(logs) != nil {
		t.Errorf("the server refused something: %v", violations(logs))
	}
	err := joining(ctx, as("m2", fabric.RoleMember))
	if e, ok := errors.AsType[*fabric.PermissionError](err); !ok || e.Op != "subscribe" {
		t.Errorf("without the scope: %v, want a *PermissionError", err)
	}
	if _, err := as("x", 0).Permissions(fabric.Scope{Role: fabric.RoleObserver, Micro: true}); !errors.Is(err, fabric.ErrConfig) {
		t.Errorf("an observer's: %v, want ErrConfig", err)
	}
}
