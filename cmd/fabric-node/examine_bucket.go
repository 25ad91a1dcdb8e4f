package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

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
		d.found.add("bucket", critical, d.remedy(err), "%v", err)
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
