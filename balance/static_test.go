package balance

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// record returns a Config.OnChange that adds to calls.
func record(calls *[]Share) func(Share) {
	return func(s Share) { *calls = append(*calls, s) }
}

func TestStaticRefuses(t *testing.T) {
	tests := []struct {
		first, workers, total int
		cfg                   Config
		field                 string
	}{
		{0, 1, 0, Config{}, "total"},
		{0, 1, -1, Config{}, "total"},
		{0, 1, 0, Config{Passive: true}, "total"},
		{-1, 1, 1, Config{}, "first"},
		{1, 1, 1, Config{}, "first"},
		{7, 1, 4, Config{}, "first"},
		{0, -1, 4, Config{}, "Workers"},
		{0, -1, 4, Config{Passive: true}, "Workers"},
		{0, 5, 4, Config{}, "Workers"},
		{3, 2, 4, Config{}, "Workers"},
		{0, MaxWorkers + 1, MaxTotal, Config{}, "Workers"},
		{0, 1 << 30, MaxTotal, Config{}, "Workers"},
		{0, 2, 4, Config{Workers: 3}, "Workers"},
		{0, 0, 4, Config{Workers: -3}, "Workers"},
		{0, 1, 4, Config{Settle: -1}, "Settle"},
		{0, 1, 4, Config{Settle: MaxSettle + 1}, "Settle"},
	}
	for _, tt := range tests {
		var calls []Share
		tt.cfg.OnChange = record(&calls)
		g, err := Static(t.Context(), tt.first, tt.workers, tt.total, tt.cfg)
		bad, ok := errors.AsType[*ConfigError](err)
		if g != nil || !ok || bad.Field != tt.field || !errors.Is(err, ErrConfig) {
			t.Errorf("Static(%d, %d, %d, %+v) = %v, %v, want a ConfigError about %s",
				tt.first, tt.workers, tt.total, tt.cfg, g, err, tt.field)
		}
		if len(calls) > 0 {
			t.Errorf("Static(%d, %d, %d) called OnChange(%v)", tt.first, tt.workers, tt.total, calls)
		}
	}
}

func TestStaticShares(t *testing.T) {
	tests := []struct {
		first, workers, total int
		cfg                   Config
		want                  Share
	}{
		{0, 0, 1, Config{}, Share{First: 0, Workers: 1, Total: 1, Epoch: 1}},
		{2, 3, 5, Config{}, Share{First: 2, Workers: 3, Total: 5, Epoch: 1}},
		{2, 0, 5, Config{Workers: 3}, Share{First: 2, Workers: 3, Total: 5, Epoch: 1}},
		{2, 3, 5, Config{Workers: 3}, Share{First: 2, Workers: 3, Total: 5, Epoch: 1}},
		{0, 1, MaxTotal, Config{}, Share{First: 0, Workers: 1, Total: MaxTotal, Epoch: 1}},
		{0, 9, 5, Config{Passive: true}, Share{First: -1, Workers: 0, Total: 5, Epoch: 1}},
		{-1, 0, 5, Config{Passive: true}, Share{First: -1, Workers: 0, Total: 5, Epoch: 1}},
	}
	for _, tt := range tests {
		g, err := Static(t.Context(), tt.first, tt.workers, tt.total, tt.cfg)
		if err != nil {
			t.Errorf("Static(%d, %d, %d): %v", tt.first, tt.workers, tt.total, err)
			continue
		}
		if got := g.Share(); got != tt.want {
			t.Errorf("Static(%d, %d, %d) has %+v, want %+v", tt.first, tt.workers, tt.total, got, tt.want)
		}
		if want := []Placed{{First: tt.want.First, Workers: tt.want.Workers, Self: true}}; !slices.Equal(g.Members(), want) {
			t.Errorf("Members() = %v, want %v", g.Members(), want)
		}
		if err := g.Leave(t.Context()); err != nil {
			t.Errorf("Leave: %v", err)
		}
	}
}

// Defect 12 of libcluster: a static member left without a call with -1.
func TestStaticSequence(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var calls []Share
		g, err := Static(t.Context(), 1, 2, 6, Config{OnChange: record(&calls)})
		if err != nil {
			t.Fatal(err)
		}
		if want := []Share{{First: 1, Workers: 2, Total: 6, Epoch: 1}}; !slices.Equal(calls, want) {
			t.Errorf("when Static returned, OnChange had %v, want %v", calls, want)
		}
		for range 2 {
			if err := g.Leave(t.Context()); err != nil {
				t.Errorf("Leave: %v", err)
			}
		}
		if want := []Share{{First: 1, Workers: 2, Total: 6, Epoch: 1}, {First: -1, Workers: 0, Total: 6, Epoch: 1}}; !slices.Equal(calls, want) {
			t.Errorf("when Leave returned, OnChange had %v, want %v", calls, want)
		}
		if got := len(g.Members()); got != 0 {
			t.Errorf("%d Members after Leave, want 0", got)
		}
	})
}

// Defect 2 of libcluster: a passive member that left stayed passive for ever.
func TestStaticPassive(t *testing.T) {
	var calls []Share
	cfg := Config{Passive: true, OnChange: record(&calls)}
	g, err := Static(t.Context(), 0, 2, 6, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetWorkers(t.Context(), 2); !errors.Is(err, ErrConfig) {
		t.Errorf("SetWorkers while passive: %v, want ErrConfig", err)
	}
	if err := g.Leave(t.Context()); err != nil {
		t.Errorf("Leave: %v", err)
	}
	if want := []Share{{First: -1, Workers: 0, Total: 6, Epoch: 1}}; !slices.Equal(calls, want) {
		t.Errorf("passive: OnChange had %v, want %v", calls, want)
	}
	cfg.Passive = false
	if g, err = Static(t.Context(), 0, 2, 6, cfg); err != nil {
		t.Fatal(err)
	}
	if got, want := g.Share(), (Share{First: 0, Workers: 2, Total: 6, Epoch: 1}); got != want {
		t.Errorf("joined again actively: %v, want %v", got, want)
	}
	if err := g.Leave(t.Context()); err != nil {
		t.Errorf("Leave: %v", err)
	}
}

func TestStaticSetWorkers(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var calls []Share
		g, err := Static(t.Context(), 1, 2, 6, Config{OnChange: record(&calls)})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{-1, 6, MaxWorkers, MaxWorkers + 1} {
			if err := g.SetWorkers(t.Context(), n); !errors.Is(err, ErrConfig) {
				t.Errorf("SetWorkers(%d) = %v, want ErrConfig", n, err)
			}
		}
		for _, n := range []int{5, 0, 1, 3} {
			if err := g.SetWorkers(t.Context(), n); err != nil {
				t.Errorf("SetWorkers(%d) = %v", n, err)
			}
			if got, want := g.Share().Workers, max(n, 1); got != want {
				t.Errorf("after SetWorkers(%d), Workers = %d, want %d", n, got, want)
			}
			synctest.Wait()
		}
		if err := g.Leave(t.Context()); err != nil {
			t.Errorf("Leave: %v", err)
		}
		if err := g.SetWorkers(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("SetWorkers after Leave = %v, want ErrClosed", err)
		}
		want := []Share{{First: 1, Workers: 2, Total: 6, Epoch: 1}, {First: 1, Workers: 5, Total: 6, Epoch: 2}, {First: 1, Workers: 1, Total: 6, Epoch: 3}, {First: 1, Workers: 3, Total: 6, Epoch: 5}, {First: -1, Workers: 0, Total: 6, Epoch: 5}}
		if !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

func TestConfigDefaults(t *testing.T) {
	cfg, err := Config{}.complete()
	if err != nil || cfg.Workers != 1 || cfg.Settle != DefaultSettle || cfg.Logger == nil {
		t.Errorf("Config{}.complete() = %+v, %v", cfg, err)
	}
	for _, name := range []string{"", "a.b", "*", "-a", "a b"} {
		if bad, ok := errors.AsType[*NameError](checkGroup(name)); !ok || bad.Field != "group" {
			t.Errorf("checkGroup(%q) = %v, want a NameError about the group", name, bad)
		}
	}
}
