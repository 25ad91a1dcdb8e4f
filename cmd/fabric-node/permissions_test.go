package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/natsfabric/natsfabric/fabric"
)

// An authority is a server in operator mode, its one account, and the signing key
// of the account whose template is a role.
type authority struct {
	url     string
	account string // public key
	seed    string // file of the signing key
	signer  nkeys.KeyPair
}

func newAuthority(t *testing.T, role fabric.Role) *authority {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		kp, err := make()
		must(err)
		public, err := kp.PublicKey()
		must(err)
		return kp, public
	}
	operator, operatorPub := pair(nkeys.CreateOperator)
	_, accountPub := pair(nkeys.CreateAccount)
	signer, signerPub := pair(nkeys.CreateAccount)

	code, out, errs := runCLI(t, "permissions", "-k", "shop", "--"+role.String(), "--scoped", "--format", "jwt")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	scope := jwt.NewUserScope()
	scope.Key, scope.Role = signerPub, role.String()
	must(json.Unmarshal([]byte(out), &scope.Template.Permissions))

	ac := jwt.NewAccountClaims(accountPub)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	ac.SigningKeys.AddScopedSigner(scope)
	accountJWT, err := ac.Encode(operator)
	must(err)
	resolver := &server.MemAccResolver{}
	must(resolver.Store(accountPub, accountJWT))
	_, systemPub := pair(nkeys.CreateAccount)
	systemJWT, err := jwt.NewAccountClaims(systemPub).Encode(operator)
	must(err)
	must(resolver.Store(systemPub, systemJWT))
	operatorJWT, err := jwt.NewOperatorClaims(operatorPub).Encode(operator)
	must(err)
	oc, err := jwt.DecodeOperatorClaims(operatorJWT)
	must(err)
	addr := natsServer(t, &server.Options{JetStream: true, TrustedOperators: []*jwt.OperatorClaims{oc}, AccountResolver: resolver, SystemAccount: systemPub})

	seed, err := signer.Seed()
	must(err)
	file := filepath.Join(t.TempDir(), "signer.nk")
	must(os.WriteFile(file, seed, 0o600))
	return &authority{"nats://" + addr, accountPub, file, signer}
}

// user signs as the command does, and stores the credentials.
func (a *authority) user(t *testing.T, pid string) (file string, code int, errs string) {
	t.Helper()
	code, out, errs := runCLI(t, "permissions", "-k", "shop", "-i", pid, "--format", "creds",
		"--signing-key", a.seed, "--issuer-account", a.account, "--signing-key-scoped")
	file = filepath.Join(t.TempDir(), "user.creds")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, code, errs
}

// Users that the command signs under the template are held to their own PID; what
// is no PID is not signed; and signed by hand, it would be everybody.
func TestSignedUsers(t *testing.T) {
	a := newAuthority(t, fabric.RoleAdmin)
	file, code, errs := a.user(t, "web-1")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	node, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "shop", PID: "web-1", URL: a.url, NATS: []nats.Option{nats.UserCredentials(file)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Leave(t.Context())
	for subject, want := range map[string]bool{
		"fab.shop.production.u.x.web-1": true, "fab.shop.production.u.x.y": false, "fab.shop.production.b.y": false,
		"$JS.API.STREAM.DELETE.KV_fab_shop_production": false,
	} {
		if got := mayPublish(t, a.url, subject, nats.UserCredentials(file)); got != want {
			t.Errorf("publish to %s: allowed is %v, want %v", subject, got, want)
		}
	}
	for _, pid := range []string{"*", ">", "a.b", "a b", "{{name()}}", "ext", "_", "é", strings.Repeat("x", 65), "a\nb"} {
		if _, code, errs := a.user(t, pid); code != exitUsage || !strings.Contains(errs, "illegal pid") {
			t.Errorf("signing %q: exit code %d, %s", pid, code, errs)
		}
	}
	if !mayPublish(t, a.url, "fab.shop.production.u.x.y", a.byHand(t, "*")) {
		t.Error("a user named * is not everybody: the check of names protects nothing")
	}
}

// byHand signs a user of any name.
func (a *authority) byHand(t *testing.T, name string) nats.Option {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := user.PublicKey()
	seed, _ := user.Seed()
	c := jwt.NewUserClaims(public)
	c.Name, c.IssuerAccount = name, a.account
	c.SetScoped(true)
	token, err := c.Encode(a.signer)
	if err != nil {
		t.Fatal(err)
	}
	return nats.UserJWTAndSeed(token, string(seed))
}

func mayPublish(t *testing.T, url, subject string, opts ...nats.Option) bool {
	t.Helper()
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish(subject, nil); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	return !errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

// What is printed is taken by a server, and a member joins with it.
func TestPermissionsAsConfiguration(t *testing.T) {
	t.Setenv("FABRIC_PASSWORD_root", "r00t")
	t.Setenv("FABRIC_PASSWORD_web_1", "w3b")
	for _, layout := range []string{"shared", "split", "isolated"} {
		t.Run(layout, func(t *testing.T) {
			code, out, errs := runCLI(t, "permissions", "-k", "shop", "--accounts", layout, "root=admin", "web-1=member")
			if code != exitOK || strings.Contains(out, "w3b") {
				t.Fatalf("exit code %d: %s\n%s", code, errs, out)
			}
			opts := &server.Options{}
			if err := opts.ProcessConfigString(out); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			opts.JetStream = true
			url := "nats://" + natsServer(t, opts)
			for _, u := range []struct {
				pid, password string
				role          fabric.Role
			}{{"root", "r00t", fabric.RoleAdmin}, {"web-1", "w3b", fabric.RoleMember}} {
				cfg := fabric.Config{Cluster: "shop", PID: fabric.PID(u.pid), URL: url, Role: u.role, NATS: []nats.Option{nats.UserInfo(u.pid, u.password)}}
				if layout != "shared" {
					cfg.Control = []nats.Option{nats.UserInfo(u.pid+".ctl", u.password)}
				}
				node, err := fabric.Join(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer node.Leave(t.Context())
			}
		})
	}
}

func TestPermissionsUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", "--pid is missing"},
		{"-i *", "illegal pid"},
		{"-i a --member --admin", "exclude each other"},
		{"-i a --format xml", "choose conf, jwt or creds"},
		{"-i a -k a_b", "illegal cluster"},
		{"-i a --only-group a.b", "illegal group"},
		{"a=member", "with --accounts only"},
		{"--accounts shared", "PID=ROLE"},
		{"--accounts shared a=king", "observer, member, candidate or admin"},
		{"--accounts other a=admin", "choose one of"},
		{"--accounts shared a-b=admin a_b=member", "same password"},
		{"-i a --scoped", "--format jwt"},
		{"-i a --format creds --signing-key /nowhere", "no such file"},
	} {
		code, out, errs := runCLI(t, append([]string{"permissions"}, strings.Fields(tt.args)...)...)
		if code == exitOK || !strings.Contains(errs, tt.want) || out != "" {
			t.Errorf("%s: exit code %d, %s; want %q", tt.args, code, errs, tt.want)
		}
	}
}
