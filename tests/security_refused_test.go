package tests

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
)

// What the tables of refusals abbreviate.
var abbreviations = strings.NewReplacer(
	"$KV.", "$KV.", "$JS.hub.API.", "$JS.hub.API.", // as they are
	"P.", "fab.t.production.", "KV.", "$KV.fab_t_production.", "API.", "$JS.API.",
	"BUCKET", "KV_fab_t_production", "MAIL", "fab_t_production_mail",
)

// Ways of using a connection.
const (
	messages = "" // publish, on the one that carries messages
	bucketOp = "bucket: "
	listen   = "listen: "
	feedOp   = "listen to the bucket: "
)

// A prohibition is what a process tries, and its twin: the same that it may do.
type prohibition struct {
	pid         fabric.PID
	op          string
	twin        string
	prohibited  []string
	explanation string
}

// prohibitions: names that begin with P., KV., API. and the like are abbreviated.
var prohibitions = []prohibition{
	{"mallory", messages, "P.u.m1.mallory", []string{"P.u.m1.c1", "P.u.m1.m1", "P.u.m1.ext", "P.u.m1.*", "P.u.m1.mallory.x"}, "speaks as another to one"},
	{"mallory", messages, "P.b.mallory", []string{"P.b.c1", "P.b.m1", "P.b.ext"}, "speaks as another to all"},
	{"mallory", messages, "P.g.news.mallory", []string{"P.g.news.c1", "P.g.news.m1"}, "speaks as another on a topic"},
	{"mallory", messages, "P.q.work.mallory", []string{"P.q.work.c1"}, "asks a service as another"},
	{"mallory", messages, "P.s.m1.mallory.1", []string{"P.s.m1.c1.1", "P.s.c1.m1.1"}, "adds chunks to another's stream"},
	{"mallory", messages, "P.r.m1.mallory.a000000.1-0000000000", []string{"P.r.m1.c1.a000000.1-0000000000", "P.r.m1._.b000000.1"}, "answers as another"},
	{"mallory", messages, "P.y.open.mallory", []string{"P.y.open.c1", "P.y.view-members.mallory", "P.y.view-members.c1", "P.y.view-g-crawl.mallory"}, "announces views"},
	{"mallory", messages, "P.u.m1.mallory", []string{"P.kv.c.p.m1", "P.kv.v.members", "P.i.m1.x.y", "P.i.mallory.x", "_INBOX.x.y", "_R_.x"}, "forges the feed, or answers of the server"},
	{"mallory", messages, "P.u.m1.mallory", []string{"fab.other.production.u.m1.mallory", "fab.t.dev.u.m1.mallory", "x", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.ACCOUNT.FABRIC.DISCONNECT"}, "leaves its fabric"},
	{"mallory", bucketOp, "P.d.m1.mallory", []string{"P.d.m1.c1", "P.d.mallory.m1"}, "writes letters as another"},
	{"mallory", bucketOp, "KV.c.p.mallory", []string{"KV.c.p.m1", "KV.c.p.c1", "KV.c.p.o1", "KV.c.p.x"}, "takes or ends another's PID"},
	{"mallory", bucketOp, "KV.s.mallory", []string{"KV.s.m1", "KV.s.c1", "KV.s"}, "renews another's session"},
	{"mallory", bucketOp, "KV.g.crawl.mallory", []string{"KV.g.crawl.m1", "KV.g.crawl", "KV.g.crawl.x.mallory"}, "wants for another"},
	{"mallory", bucketOp, "KV.s.mallory", []string{"KV.c.e.billing", "KV.c.r.members", "KV.c.r.g.crawl", "KV.v.members", "KV.v.g.crawl", "KV.b", "KV.x", "$KV.other.s.mallory"}, "leads, coordinates, or opens the bucket"},
	{"mallory", bucketOp, "API.STREAM.INFO.BUCKET", []string{
		"API.STREAM.CREATE.BUCKET", "API.STREAM.UPDATE.BUCKET", "API.STREAM.DELETE.BUCKET", "API.STREAM.PURGE.BUCKET",
		"API.STREAM.MSG.DELETE.BUCKET", "API.STREAM.SNAPSHOT.BUCKET", "API.STREAM.RESTORE.BUCKET",
		"API.STREAM.PEER.REMOVE.BUCKET", "API.STREAM.LEADER.STEPDOWN.BUCKET", "API.STREAM.CREATE.evil",
	}, "changes, copies or removes the bucket"},
	{"mallory", bucketOp, "API.STREAM.MSG.GET.BUCKET", []string{
		"API.DIRECT.GET.BUCKET", "API.DIRECT.GET.BUCKET.KV.c.p.m1", "API.STREAM.MSG.GET.KV_other", "API.STREAM.INFO.KV_other",
		"API.STREAM.LIST", "API.STREAM.NAMES", "API.CONSUMER.LIST.BUCKET", "API.CONSUMER.NAMES.BUCKET",
	}, "reads past the bucket"},
	{"mallory", bucketOp, "API.CONSUMER.MSG.NEXT.MAIL.mb-mallory", []string{
		"API.CONSUMER.MSG.NEXT.MAIL.mb-m1", "API.CONSUMER.INFO.MAIL.mb-m1", "API.CONSUMER.DELETE.MAIL.mb-m1", "API.CONSUMER.CREATE.MAIL.mb-m1",
		"API.CONSUMER.CREATE.MAIL.mb-m1.P.d.m1.*", "API.CONSUMER.CREATE.MAIL.mb-mallory", "API.CONSUMER.CREATE.MAIL.mb-mallory.P.d.mallory.*",
		"API.CONSUMER.DURABLE.CREATE.MAIL.mb-mallory", "API.CONSUMER.PAUSE.MAIL.mb-m1", "API.STREAM.MSG.GET.MAIL", "API.STREAM.PURGE.MAIL",
		"API.CONSUMER.CREATE.BUCKET", "API.CONSUMER.CREATE.BUCKET.mallory", "API.CONSUMER.CREATE.BUCKET.mallory.KV.>", "API.CONSUMER.DELETE.BUCKET.m1",
	}, "makes, takes or empties consumers"},
	{"mallory", bucketOp, "$JS.ACK.MAIL.mb-mallory.1.1.1.1.0", []string{"$JS.ACK.MAIL.mb-m1.1.1.1.1.0", "$JS.ACK.BUCKET.x.1.1.1.1.0", "$JS.FC.BUCKET.x.y"}, "acknowledges another's mail"},
	{"mallory", bucketOp, "API.INFO", []string{
		"$JS.hub.API.INFO", "$JS.hub.API.STREAM.DELETE.BUCKET", "$JS.hub.API.KV.c.p.m1", "API.KV.c.p.m1",
		"API.ACCOUNT.PURGE.FABRIC", "API.META.LEADER.STEPDOWN", "API.SERVER.REMOVE", "$SYS.REQ.SERVER.PING",
	}, "goes through a domain, or administers"},
	{"mallory", listen, "P.u.mallory.*", []string{"P.u.m1.*", "P.u.*.*", "P.u.>", "P.>", "fab.>", ">", "*.>", "fab.t.*.u.m1.*"}, "reads what is for another"},
	{"mallory", listen, "P.r.mallory.>", []string{"P.r.m1.>", "P.r.*.>", "P.r.>"}, "reads answers to another"},
	{"mallory", listen, "P.s.mallory.*.*", []string{"P.s.m1.*.*", "P.s.>"}, "reads chunks for another"},
	{"mallory", listen, "P.i.mallory.x.*", []string{"P.i.m1.>", "P.i.*.>", "P.i.>", "_INBOX.>", "_R_.>", "$SYS.>", "$SYS.REQ.>"}, "reads what the server answers to another"},
	{"mallory", listen, "P.q.work.* fab.t.production", []string{
		"P.q.work.*", "P.q.*.*", "P.q.>", "P.q.work.m1", "P.q.work.* workers", "P.q.work.* fab.t", "P.q.*.* fab.t.production.x", "P.q.> fab.t.production", "P.q.work.* *", "P.q.work.* >",
	}, "has copies of requests to a service"},
	{"mallory", listen, "P.r.mallory.>", []string{"$SRV.PING", "$SRV.INFO.fab-t", "$SRV.STATS.fab-t.production_mallory", "$SRV.>"}, "answers as a micro service without that scope"},
	{"mallory", feedOp, "P.kv.>", []string{"$KV.>", "KV.>", "KV.s.mallory", "$JS.API.>", "$JS.ACK.>", "$JS.EVENT.>", "$JSC.>", "P.d.m1.*", "P.d.mallory.*", "P.u.m1.*", ">"}, "listens to the bucket's own subjects"},
	{"o1", messages, "P.u.m1.o1", []string{"P.u.m1.m1", "P.b.m1", "P.y.open.o1", "P.y.view-members.o1"}, "an observer speaks as a member"},
	{"o1", bucketOp, "API.STREAM.MSG.GET.BUCKET", []string{"KV.c.p.o1", "KV.s.o1", "KV.g.crawl.o1", "KV.c.e.billing", "API.STREAM.CREATE.BUCKET", "API.CONSUMER.MSG.NEXT.MAIL.mb-o1"}, "an observer writes"},
	{"o1", listen, "P.r.o1.>", []string{"P.u.o1.*", "P.b.*", "P.g.news.*", "P.q.work.*", "P.s.o1.*.*"}, "an observer receives"},
	{"c1", messages, "P.y.view-members.c1", []string{"P.u.m1.c2", "P.b.m1", "P.r.m1.c2.a000000.1-0000000000", "P.y.view-members.c2"}, "a candidate speaks as another"},
	{"c1", bucketOp, "KV.c.e.billing", []string{"KV.s.m1", "KV.s.c2", "KV.x", "API.STREAM.CREATE.BUCKET", "API.STREAM.UPDATE.BUCKET", "API.STREAM.DELETE.BUCKET", "API.STREAM.PURGE.BUCKET"}, "a candidate renews for another, or changes the bucket"},
	{"root", bucketOp, "API.STREAM.UPDATE.BUCKET", []string{"API.STREAM.DELETE.BUCKET", "API.STREAM.PURGE.BUCKET", "API.STREAM.CREATE.evil", "API.STREAM.MSG.DELETE.BUCKET", "$KV.other.x"}, "an admin removes the bucket"},
	{"root", messages, "P.u.m1.root", []string{"P.u.m1.c1", "P.b.c1"}, "an admin speaks as another"},
}

// TestRefused: what the role of a process does not need is refused, in each layout,
// and its twin is not.
func TestRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		count := 0
		for _, p := range prohibitions {
			a := r.attacker(p.pid)
			for i, subject := range append([]string{p.twin}, p.prohibited...) {
				full := abbreviations.Replace(subject)
				var allowed bool
				switch p.op {
				case messages:
					allowed = a.mayPublish(a.msg, nats.NewMsg(full))
				case bucketOp:
					allowed = a.mayPublish(a.ctl, nats.NewMsg(full))
				case listen:
					allowed = a.maySubscribe(a.msg, full)
				case feedOp:
					allowed = a.maySubscribe(a.ctl, full)
				}
				if twin := i == 0; twin != allowed {
					t.Errorf("%s: %s%s by %s: allowed is %v, want %v", p.explanation, p.op, subject, p.pid, allowed, twin)
				}
			}
			count += len(p.prohibited)
		}
		t.Logf("%d attempts were refused, %d twins were not", count, len(prohibitions))
	})
}

// TestQueueGroupsAreNoWayIn: a queue subscription needs what a plain one does.
func TestQueueGroupsAreNoWayIn(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		a := r.attacker("mallory")
		if !a.maySubscribe(a.msg, "fab.t.production.q.work.* fab.t.production") {
			t.Error("a member cannot take part in a service")
		}
		for _, subject := range []string{"fab.t.production.u.m1.*", "fab.t.production.>", ">"} {
			for _, queue := range []string{"workers", "fab.t.production"} {
				if a.maySubscribe(a.msg, subject+" "+queue) {
					t.Errorf("a queue subscription to %s in %s is allowed", subject, queue)
				}
			}
		}
	})
}

// TestServicesAreNotTapped: who may serve gets its share of a service's requests, by
// whatever subscriptions the server allows it, and never what another serves as well.
func TestServicesAreNotTapped(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, m1 := r.join("c1"), r.join("m1")
		ctx := within(t, patience)
		var served atomic.Int64
		serving, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			ended <- m1.Serve(serving, "work", 4, func(context.Context, *fabric.Message) ([]byte, error) {
				served.Add(1)
				return nil, nil
			})
		}()
		for { // until it serves
			if _, err := c1.Anycast(ctx, "work", nil); err == nil {
				break
			} else if !errors.Is(err, fabric.ErrNoReceiver) {
				t.Fatal(err)
			}
		}
		mallory := r.attacker("mallory")
		var tapped atomic.Int64
		for _, subject := range []string{"q.work.*", "q.*.*", "q.work.c1"} {
			for _, queue := range []string{"", "workers", "fab.t.production"} {
				mallory.refused(mallory.msg, func() error {
					_, err := mallory.msg.QueueSubscribe("fab.t.production."+subject, queue, func(*nats.Msg) { tapped.Add(1) })
					return err
				})
			}
		}
		served.Store(0)
		const requests = 200
		var wg sync.WaitGroup
		for range requests {
			wg.Go(func() {
				try, cancel := context.WithTimeout(ctx, time.Second) // mallory answers nothing
				defer cancel()
				_, _ = c1.Anycast(try, "work", nil)
			})
		}
		wg.Wait()
		stop()
		<-ended
		if err := mallory.msg.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		settled(t, func() any { return tapped.Load() })
		if served.Load()+tapped.Load() != requests {
			t.Errorf("%d requests were served and %d were seen by mallory, of %d", served.Load(), tapped.Load(), requests)
		}
		if tapped.Load() == 0 || served.Load() == 0 {
			t.Errorf("%d served, %d seen by mallory: nothing is shown", served.Load(), tapped.Load())
		}
	})
}
