package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
)

// What a doctor calls wrong.
const (
	wantPayload  = 1 << 20
	wantFiles    = 1024
	wantStorage  = 64 << 20
	clockOffset  = 2 * time.Second
	slowAnswer   = 250 * time.Millisecond
	oldestServer = "2.12.7" // before it and, in its line, 2.14.0, others could pass permissions
	oldestLine   = "2.14.0"
)

// A doctor looks at one fabric.
type doctor struct {
	app  *app
	ep   endpoint
	role fabric.Role

	found   findings
	figures []string   // name=value
	nc, ctl *nats.Conn // the connections for messages and for the bucket, perhaps the same
	bucket  *kv.Bucket
	pid     fabric.PID
}

func (d *doctor) where() string {
	return fmt.Sprintf("-k %s -e %s", d.app.opts.cluster, d.app.opts.env)
}

func (d *doctor) figure(name string, value any) {
	d.figures = append(d.figures, fmt.Sprintf("%s=%v", name, value))
}

// look goes through the checks, each as far as the ones before allow.
func (d *doctor) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 4*d.app.opts.timeout)
	defer cancel()
	d.pid = fabric.PID(cmp.Or(d.app.opts.pid, "doctor"))
	cfg := d.app.config(d.ep, true)
	cfg.PID = d.pid
	allowed, err := cfg.Permissions(fabric.Scope{Role: d.role})
	if err != nil {
		d.found.add("names", critical, "choose other names", "%v", err)
		return
	}
	d.limits()
	if !d.connect(cfg) {
		return
	}
	defer d.nc.Close()
	defer d.ctl.Close()
	d.servers()
	d.payload()
	d.bucket = kv.New(d.ctl, kv.Config{
		Name: kv.Name(cfg.Cluster, cfg.Env), Feed: strings.TrimSuffix(allowed.Feed, ".>"), Domain: cfg.Domain,
		Denied: d.denied, Logger: slog.New(slog.DiscardHandler),
	})
	if d.jetStream(ctx) && d.settings(ctx) {
		d.records(ctx)
	}
	d.permissions(allowed)
}

// connect reports whether there is a connection.
func (d *doctor) connect(cfg fabric.Config) bool {
	opts := []nats.Option{nats.Name("fabric-node doctor"), nats.NoReconnect(),
		nats.Timeout(d.app.opts.timeout), nats.CustomInboxPrefix(fabric.InboxPrefix(cfg.Cluster, cfg.Env, d.pid)),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	nc, err := nats.Connect(d.ep.url, append(slices.Clone(opts), d.ep.nats...)...)
	d.nc, d.ctl = nc, nc
	if err == nil && d.ep.control != nil {
		if d.ctl, err = nats.Connect(d.ep.url, append(opts, d.ep.control...)...); err != nil {
			nc.Close()
		}
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", fabric.ErrConnect, err)
		fix := d.app.hint(err)
		if errors.Is(err, nats.ErrAuthorization) {
			fix = "give credentials that the server knows: NATS_CREDS, NATS_USER and NATS_PASSWORD, or --context"
		}
		d.found.add("connection", critical, fix, "%v", err)
		return false
	}
	rtt, err := nc.RTT()
	switch {
	case err != nil:
		d.found.add("connection", critical, "see whether the server is overloaded", "no answer from %s: %v", nc.ConnectedUrlRedacted(), err)
	case rtt > slowAnswer:
		d.found.add("connection", warning, "use a server that is nearer, or a longer --ttl", "%s answers after %v", nc.ConnectedUrlRedacted(), rtt.Round(time.Millisecond))
	default:
		d.found.add("connection", healthy, "", "%s answers in %v", nc.ConnectedUrlRedacted(), rtt.Round(10*time.Microsecond))
	}
	d.figure("rtt", fmt.Sprintf("%.6fs", rtt.Seconds()))
	if d.app.opts.serverFlag && strings.Contains(d.app.opts.server, "@") {
		d.found.add("identity", warning, "put it into FABRIC_SERVER, NATS_PASSWORD, NATS_TOKEN, a file (NATS_CREDS, NATS_NKEY) or a --context",
			"--server has a password or token in it: other users of this machine can read the command line")
	}
	if u := nc.ConnectedUrl(); nc.Opts.User == "" && nc.Opts.Token == "" && nc.Opts.UserJWT == nil && nc.Opts.Nkey == "" &&
		!strings.Contains(u, "@") && nc.Opts.TLSConfig == nil {
		d.found.add("identity", warning, "give each process a user of its own: fabric-node permissions --help",
			"the server lets anybody in: who reaches it is a member, under any name")
	}
	return true
}

// denied makes of a refused request what it is.
func (d *doctor) denied(subject string) error {
	if err := d.ctl.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`) {
		return &kv.PermissionError{Op: "publish", Subject: subject}
	}
	return nil
}

// remedy is what to do about an answer of JetStream's, or about none.
func (d *doctor) remedy(err error) string {
	if fix := d.app.hint(err); fix != "" && !errors.Is(err, context.DeadlineExceeded) {
		return fix
	}
	return "see that a majority of the servers with JetStream runs, and in their logs whether they have elected who leads them"
}

// jetStream reports whether there is one that a bucket can be in.
func (d *doctor) jetStream(ctx context.Context) bool {
	account, err := d.bucket.Account(ctx)
	if err != nil {
		wrapped := err
		for from, to := range map[error]error{kv.ErrNoJetStream: fabric.ErrNoJetStream, kv.ErrOldServer: fabric.ErrOldServer} {
			if errors.Is(err, from) {
				wrapped = fmt.Errorf("%w: %w", to, err)
			}
		}
		d.found.add("jetstream", critical, d.remedy(wrapped), "%v", err)
		return false
	}
	text := fmt.Sprintf("API level %d, %d streams", account.API.Level, account.Streams)
	limits := account.Limits
	switch used := int64(account.Store); {
	case limits.MaxStreams > 0 && account.Streams >= limits.MaxStreams:
		d.found.add("jetstream", warning, "allow the account more streams", "%s, which is all that the account may have", text)
	case limits.MaxStore > 0 && limits.MaxStore-used < wantStorage:
		d.found.add("jetstream", warning, "allow the account more storage, or remove other streams",
			"%s; %d of %d bytes are used, the bucket may run out", text, used, limits.MaxStore)
	default:
		d.found.add("jetstream", healthy, "", "%s", text)
	}
	return true
}
