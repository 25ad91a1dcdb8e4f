package tests

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A site is a server of somebody else's, and how to be let in.
type site struct {
	url     string
	options []nats.Option
	context map[string]string // the same as a NATS context
}

// TestExternalServers joins as a member with each way of being let in, refuses to
// without, and looks at the fabric with a NATS context that says the same.
func TestExternalServers(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) site{
		"creds": withCreds, "nkey": withNkey, "user": withUser, "TLS": withTLS(false), "mutual TLS": withTLS(true),
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			n := join(t, s.url, "a", func(c *fabric.Config) { c.NATS = s.options })
			m := join(t, s.url, "b", func(c *fabric.Config) { c.NATS = s.options })
			awaitView(t, n, members(2))
			if err := n.Send(t.Context(), "b", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if got, err := m.Receive(within(t, patience)); err != nil || got.From != "a" {
				t.Errorf("Receive = %v, %v, want a message of a", got, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if n, err := fabric.Join(ctx, fabric.Config{Cluster: "t", PID: "c", URL: s.url}); err == nil {
				leave(t, n)
				t.Error("joined without being let in")
			} else if !errors.Is(err, fabric.ErrConnect) {
				t.Errorf("Join without being let in: %v, want ErrConnect", err)
			}
			s.context["url"] = s.url
			text, err := json.Marshal(s.context)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "context.json")
			write(t, path, text)
			out := run(t, "go", "run", "./cmd/fabric-node", "members", "-k", "t", "--context", path, "-o", "ndjson")
			if !strings.Contains(out, `"pid":"a"`) || !strings.Contains(out, `"pid":"b"`) {
				t.Errorf("members --context printed %s, want a and b", out)
			}
		})
	}
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func must1[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func withUser(t *testing.T) site {
	s := natstest.Start(t, func(o *server.Options) { o.Username, o.Password = "u", "p" })
	return site{s.URL(), []nats.Option{nats.UserInfo("u", "p")}, map[string]string{"user": "u", "password": "p"}}
}

func withNkey(t *testing.T) site {
	kp := must1[nkeys.KeyPair](t)(nkeys.CreateUser())
	pub := must1[string](t)(kp.PublicKey())
	seed := filepath.Join(t.TempDir(), "seed")
	write(t, seed, must1[[]byte](t)(kp.Seed()))
	s := natstest.Start(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: pub}} })
	opt := must1[nats.Option](t)(nats.NkeyOptionFromSeed(seed))
	return site{s.URL(), []nats.Option{opt}, map[string]string{"nkey": seed}}
}

// withCreds starts a server in operator mode with an account that has JetStream.
func withCreds(t *testing.T) site {
	operator := must1[nkeys.KeyPair](t)(nkeys.CreateOperator())
	account := must1[nkeys.KeyPair](t)(nkeys.CreateAccount())
	system := must1[nkeys.KeyPair](t)(nkeys.CreateAccount())
	user := must1[nkeys.KeyPair](t)(nkeys.CreateUser())
	pub := func(kp nkeys.KeyPair) string { return must1[string](t)(kp.PublicKey()) }
	encode := must1[string](t)

	oc := jwt.NewOperatorClaims(pub(operator))
	oc.SystemAccount = pub(system)
	oc = must1[*jwt.OperatorClaims](t)(jwt.DecodeOperatorClaims(encode(oc.Encode(operator))))
	ac := jwt.NewAccountClaims(pub(account))
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	resolver := &server.MemAccResolver{}
	for claims, of := range map[jwt.Claims]nkeys.KeyPair{ac: account, jwt.NewAccountClaims(pub(system)): system} {
		if err := resolver.Store(pub(of), encode(claims.Encode(operator))); err != nil {
			t.Fatal(err)
		}
	}
	uc := jwt.NewUserClaims(pub(user))
	uc.IssuerAccount = ""
	creds := filepath.Join(t.TempDir(), "user.creds")
	write(t, creds, must1[[]byte](t)(jwt.FormatUserConfig(encode(uc.Encode(account)), must1[[]byte](t)(user.Seed()))))
	s := natstest.Start(t, func(o *server.Options) {
		o.TrustedOperators = []*jwt.OperatorClaims{oc}
		o.SystemAccount = pub(system)
		o.AccountResolver = resolver
	})
	return site{s.URL(), []nats.Option{nats.UserCredentials(creds)}, map[string]string{"creds": creds}}
}

// withTLS starts a server whose certificate is of an authority of its own, and which
// asks clients for one if mutual.
func withTLS(mutual bool) func(t *testing.T) site {
	return func(t *testing.T) site {
		dir := t.TempDir()
		ca, cert, key := certificates(t, dir)
		pair := must1[tls.Certificate](t)(tls.LoadX509KeyPair(cert, key))
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(must1[[]byte](t)(os.ReadFile(ca)))
		s := natstest.Start(t, func(o *server.Options) {
			o.TLS, o.TLSTimeout = true, 5
			o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, MinVersion: tls.VersionTLS12}
			if mutual {
				o.TLSVerify, o.TLSConfig.ClientAuth = true, tls.RequireAndVerifyClientCert
			}
		})
		st := site{strings.Replace(s.URL(), "nats://", "tls://", 1), []nats.Option{nats.RootCAs(ca)}, map[string]string{"ca": ca}}
		if mutual {
			st.options = append(st.options, nats.ClientCert(cert, key))
			st.context["cert"], st.context["key"] = cert, key
		}
		return st
	}
}

// certificates makes an authority, and a certificate of loopback, as files.
func certificates(t *testing.T, dir string) (ca, cert, key string) {
	t.Helper()
	caKey := must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root := must1[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, &caKey.PublicKey, caKey))
	leafKey := must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	leaf := must1[[]byte](t)(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, template, &leafKey.PublicKey, caKey))
	save := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		write(t, path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		return path
	}
	return save("ca.pem", "CERTIFICATE", root), save("cert.pem", "CERTIFICATE", leaf),
		save("key.pem", "EC PRIVATE KEY", must1[[]byte](t)(x509.MarshalECPrivateKey(leafKey)))
}

// TestGateways has a member in each of two clusters that are joined by a gateway.
func TestGateways(t *testing.T) {
	t.Parallel()
	var ports []int
	for range 4 { // two of gateways, two of clusters
		ports = append(ports, must1[int](t)(natstest.FreePort()))
	}
	names := []string{"east", "west"}
	var gateways []*server.RemoteGatewayOpts
	for i, name := range names {
		gateways = append(gateways, &server.RemoteGatewayOpts{
			Name: name, URLs: []*url.URL{{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[i])}},
		})
	}
	var urls []string
	for i, name := range names {
		s := natstest.Start(t, func(o *server.Options) {
			o.ServerName = name
			o.Cluster = server.ClusterOpts{Name: name, Host: "127.0.0.1", Port: ports[2+i]}
			o.Routes = server.RoutesFromStr(fmt.Sprintf("nats://127.0.0.1:%d", ports[2+i])) // itself
			o.Gateway = server.GatewayOpts{Name: name, Host: "127.0.0.1", Port: ports[i], Gateways: gateways}
		})
		urls = append(urls, s.URL())
	}
	one := func(c *fabric.Config) { c.Replicas = 1; c.Lease = clusterLease } // a cluster of one keeps one copy
	a := join(t, urls[0], "a", one)
	b := join(t, urls[1], "b", one)
	awaitView(t, a, members(2))
	awaitView(t, b, members(2))
	for _, way := range [][2]*fabric.Node{{a, b}, {b, a}} {
		answer := make(chan error, 1)
		go func() {
			m, err := way[1].Receive(within(t, patience))
			if err == nil {
				err = m.Reply(t.Context(), []byte("yes"))
			}
			answer <- err
		}()
		got, err := way[0].Request(within(t, patience), way[1].PID(), []byte("there?"))
		if err != nil || string(got.Data) != "yes" {
			t.Errorf("%s asks %s: %v, %v", way[0].PID(), way[1].PID(), got, err)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
	}
}

// TestServerVersions runs real processes of the oldest supported servers, of one that
// is warned about, and of one that is refused.
func TestServerVersions(t *testing.T) {
	if !*full {
		t.Skip("NOT RUN: servers of other versions; -full fetches and builds them")
	}
	for version, want := range map[string]struct{ refused, warned bool }{
		"2.10.27": {refused: true, warned: true}, "2.11.6": {warned: true}, "2.12.7": {}, "2.14.0": {}, "": {},
	} {
		t.Run("v"+version, func(t *testing.T) {
			c := natstest.StartSetup(t, 3, natstest.Setup{Versions: []string{version, version, version}})
			var log bytes.Buffer // slog's handlers write one record at a time
			cfg := fabric.Config{Cluster: "t", PID: "probe", URL: c.URL(), Lease: clusterLease, Logger: slog.New(slog.NewTextHandler(&log, nil))}
			n, err := fabric.Join(within(t, patience), cfg)
			if err == nil {
				leave(t, n)
			}
			if got := errors.Is(err, fabric.ErrOldServer); got != want.refused || err != nil && !got {
				t.Fatalf("Join = %v, want ErrOldServer %v", err, want.refused)
			}
			if got := strings.Contains(log.String(), "the server is old"); got != want.warned {
				t.Errorf("warned: %v, want %v\n%s", got, want.warned, log.String())
			}
			if want.refused {
				return
			}
			cr := newCrowd(t, c)
			victim := c.LeaderOf(bucket)
			c.Kill(victim)
			cr.check(c, 0)
			c.Start(victim)
			c.WaitReady()
			cr.check(c, 1)
			cr.end()
		})
	}
}
