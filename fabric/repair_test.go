package fabric_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestRepair spoils settings of a bucket that is in use. Join refuses it and names
// one; Repair puts them right under the members, and what they hold stays held.
func TestRepair(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		await(t, a, "a")
		inc := a.Incarnation()
		js, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		st, err := js.Stream(t.Context(), "KV_fab_c_production")
		if err != nil {
			t.Fatal(err)
		}
		bad := st.CachedInfo().Config
		bad.AllowDirect, bad.Discard, bad.RePublish = true, jetstream.DiscardOld, nil
		bad.Metadata = map[string]string{"theirs": "stays"}
		if _, err := js.UpdateStream(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		cfg := fabric.Config{Cluster: "c", NATS: options(s.Link())}
		want := []string{"allow_direct", "discard", "republish"}
		if _, err := fabric.Join(within(t, time.Minute), cfg); !errors.Is(err, fabric.ErrBucket) {
			t.Errorf("Join = %v, want ErrBucket", err)
		}
		for _, dry := range []bool{true, false} {
			changes, err := fabric.Repair(within(t, time.Minute), cfg, 0, dry)
			var got []string
			for _, c := range changes {
				got = append(got, c.Field)
			}
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("Repair (dry %v) = %v, %v, want %v", dry, changes, err, want)
			}
		}
		if changes, err := fabric.Repair(within(t, time.Minute), cfg, 1, false); err != nil || len(changes) != 0 {
			t.Errorf("Repair of a good bucket = %v, %v", changes, err)
		}
		if st, err = js.Stream(t.Context(), "KV_fab_c_production"); err != nil || st.CachedInfo().Config.Metadata["theirs"] != "stays" {
			t.Errorf("what is not the fabric's was changed: %v, %v", st, err)
		}
		b := join(t, s, "b")
		await(t, a, "a", "b")
		await(t, b, "a", "b")
		if a.Incarnation() != inc {
			t.Errorf("a has incarnation %d, had %d", a.Incarnation(), inc)
		}
		// A single server cannot keep three.
		if _, err := fabric.Repair(within(t, time.Minute), cfg, 3, false); err == nil {
			t.Error("three copies on one server")
		}
		if _, err := fabric.Repair(within(t, time.Minute), cfg, 6, false); !errors.Is(err, fabric.ErrConfig) {
			t.Errorf("six copies: %v, want ErrConfig", err)
		}
	})
}
