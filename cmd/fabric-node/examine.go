package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
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
	if u := nc.ConnectedUrl(); nc.Opts.User == "" && nc.Opts.Token == "" && nc.Opts.UserJWT == nil && nc.Opts.Nkey == "" &&
		!strings.Contains(u, "@") && nc.Opts.TLSConfig == nil {
		d.found.add("identity", warning, "give each process a user of its own: fabric-node permissions --help",
			"the server lets anybody in: who reaches it is a member, under any name")
	}
	return true
}

// servers looks at the versions of all servers that are known.
func (d *doctor) servers() {
	own := d.nc.ConnectedServerVersion()
	versions := map[string][]string{own: {d.nc.ConnectedServerName()}}
	known := d.nc.Servers()
	for _, u := range known {
		if hostOf(u) == hostOf(d.nc.ConnectedUrl()) {
			continue
		}
		nc, err := nats.Connect(d.withUser(u), append(slices.Clone(d.ep.nats), nats.NoReconnect(), nats.Timeout(d.app.opts.timeout), nats.IgnoreDiscoveredServers())...)
		if err != nil {
			d.found.add("routes", warning, "start that server, or take it out of the list", "%s does not answer: %v", redactServer(u), err)
			continue
		}
		if name := nc.ConnectedServerName(); !slices.Contains(versions[nc.ConnectedServerVersion()], name) {
			versions[nc.ConnectedServerVersion()] = append(versions[nc.ConnectedServerVersion()], name)
		}
		if got, want := nc.ConnectedClusterName(), d.nc.ConnectedClusterName(); got != want {
			d.found.add("routes", critical, "name servers of one cluster only", "%s is of cluster %q, this one of %q", redactServer(u), got, want)
		}
		nc.Close()
	}
	d.figure("servers", len(known))
	if len(versions) > 1 {
		d.found.add("versions", warning, "finish the upgrade", "the servers have different versions: %v", versions)
	}
	if older(own, oldestServer) || strings.HasPrefix(own, "2.13.") {
		d.found.add("server", warning, fmt.Sprintf("upgrade it to %s, %s or later", oldestServer, oldestLine),
			"nats-server %s has known holes in its permissions", own)
	} else {
		d.found.add("server", healthy, "", "nats-server %s%s", own, clusterText(d.nc))
	}
}

func hostOf(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	return u.Host
}

// withUser gives a server that another one named the user of the one that is
// connected to, as a client that reconnects does.
func (d *doctor) withUser(server string) string {
	u, err := url.Parse(server)
	current, currentErr := url.Parse(d.nc.ConnectedUrl())
	if err != nil || currentErr != nil || u.User != nil {
		return server
	}
	u.User = current.User
	return u.String()
}

func clusterText(nc *nats.Conn) string {
	if name := nc.ConnectedClusterName(); name != "" {
		return " of cluster " + name
	}
	return ""
}

// older compares two versions by their numbers.
func older(a, b string) bool {
	var x, y [3]int
	fmt.Sscanf(a, "%d.%d.%d", &x[0], &x[1], &x[2])
	fmt.Sscanf(b, "%d.%d.%d", &y[0], &y[1], &y[2])
	return slices.Compare(x[:], y[:]) < 0
}

func (d *doctor) payload() {
	switch limit := d.nc.MaxPayload(); {
	case limit < kv.MaxRecord:
		d.found.add("payload", critical, "set max_payload of the server to 1MB", "max_payload is %d bytes: the view of a large fabric does not fit", limit)
	case limit < wantPayload:
		d.found.add("payload", warning, "set max_payload of the server to 1MB", "max_payload is %d bytes, less than the usual 1 MiB", limit)
	default:
		d.found.add("payload", healthy, "", "max_payload is %d bytes", limit)
	}
}

// denied makes of a refused request what it is.
func (d *doctor) denied(subject string) error {
	if err := d.ctl.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`) {
		return &kv.PermissionError{Op: "publish", Subject: subject}
	}
	return nil
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
		d.found.add("jetstream", critical, cmp.Or(d.app.hint(wrapped), "see the server's log"), "%v", err)
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

// settings reports whether there is a bucket.
func (d *doctor) settings(ctx context.Context) bool {
	sent := time.Now()
	info, wrong, err := d.bucket.Inspect(ctx)
	took := time.Since(sent)
	if errors.Is(err, kv.ErrNoBucket) {
		d.found.add("bucket", warning, "have a process of role admin join: it makes the bucket", "there is none: nobody has joined yet")
		return false
	}
	if err != nil {
		d.found.add("bucket", critical, cmp.Or(d.app.hint(err), "see the server's log"), "%v", err)
		return false
	}
	for _, w := range wrong {
		d.found.add("bucket", critical, "as an admin: fabric-node repair "+d.where(), "%v", w)
	}
	if len(wrong) == 0 {
		d.found.add("bucket", healthy, "", "%s is set up as it should be: %d records, %d bytes", info.Config.Name, info.State.Msgs, info.State.Bytes)
	}
	d.figure("records", info.State.Msgs)
	d.replicas(info)
	d.clock(info, sent, took)
	return true
}

func (d *doctor) replicas(info *jetstream.StreamInfo) {
	clustered := d.nc.ConnectedClusterName() != ""
	switch {
	case clustered && info.Config.Replicas == 1:
		d.found.add("replicas", warning, "as an admin: fabric-node repair --replicas 3 "+d.where(),
			"the bucket has one replica in a cluster: it is gone while that server is")
	case clustered && (info.Cluster == nil || info.Cluster.Leader == ""):
		d.found.add("replicas", critical, "start the servers that are down: a majority is needed", "the bucket has no leader: nothing can be written")
	case clustered:
		behind := 0
		for _, r := range info.Cluster.Replicas {
			if r.Offline || !r.Current {
				behind++
				d.found.add("replicas", warning, "start server "+r.Name+", or remove it as a peer for good", "the replica on %s is offline or behind", r.Name)
			}
		}
		if behind == 0 {
			d.found.add("replicas", healthy, "", "%d, led by %s", info.Config.Replicas, info.Cluster.Leader)
		}
	}
}

// clock compares this machine's with the server's, as of the middle of a round trip.
func (d *doctor) clock(info *jetstream.StreamInfo, sent time.Time, took time.Duration) {
	if info.TimeStamp.IsZero() {
		return
	}
	offset := sent.Add(took / 2).Sub(info.TimeStamp)
	d.figure("clock_offset", fmt.Sprintf("%.3fs", offset.Seconds()))
	text := fmt.Sprintf("this machine's clock is %v ahead of the server's", offset.Round(time.Millisecond))
	if offset.Abs() > clockOffset+took {
		d.found.add("clock", warning, "synchronise the clocks (NTP): ages are shown wrong, and a bucket made anew may begin in the past", "%s", text)
		return
	}
	d.found.add("clock", healthy, "", "%s", text)
}

// records looks at what is in the bucket.
func (d *doctor) records(ctx context.Context) {
	entries, err := d.bucket.List(ctx, ">")
	if err != nil {
		d.found.add("records", unknown, cmp.Or(d.app.hint(err), "try again"), "%v", err)
		return
	}
	now, err := d.bucket.Clock(ctx)
	if err != nil {
		now = time.Now()
	}
	foreign, sessions, claims := 0, map[string]lease.SessionRecord{}, map[string]kv.Entry{}
	for _, e := range entries {
		if err := lease.Verify(e); err != nil {
			foreign++
			d.found.add("records", critical, fmt.Sprintf("look at it (nats kv get %[1]s %[2]s), see who wrote it, then: nats kv del %[1]s %[2]s",
				kv.Name(d.app.opts.cluster, d.app.opts.env), e.Key), "%v", err)
			continue
		}
		if r, err := lease.ParseSession(e); err == nil && lease.Fresh(e, r.Inc, now) {
			sessions[r.PID] = r
		}
		if r, err := lease.ParsePID(e); err == nil && r.Held() {
			claims[r.PID] = e
		}
	}
	living := 0
	for pid, e := range claims {
		if s, ok := sessions[pid]; ok && s.Inc == e.Rev {
			living++
		} else if ok {
			d.found.add("pids", warning, "give each process a PID of its own", "%s is renewed by a process that does not hold it", pid)
		}
	}
	if foreign == 0 {
		d.found.add("records", healthy, "", "all %d are the fabric's", len(entries))
	}
	d.figure("members", living)
	d.members(living, sessions, claims)
}

func (d *doctor) members(living int, sessions map[string]lease.SessionRecord, claims map[string]kv.Entry) {
	if pid := d.app.opts.pid; pid != "" {
		if s, ok := sessions[pid]; ok && claims[pid].Rev == s.Inc {
			d.found.add("pids", warning, "if that is another process than you think, give this one another --pid",
				"%s is held, by a process on %s since %s", pid, s.Host, s.Since.Format(time.RFC3339))
		}
	}
	if len(claims) > living {
		d.found.add("members", warning, "nothing, if it passes within two leases; else see whether a candidate is up",
			"%d of %d members are not heard", len(claims)-living, len(claims))
		return
	}
	d.found.add("members", healthy, "", "%s", plural(living, "member"))
}
