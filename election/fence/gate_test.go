package fence

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

func nothing() error { return nil }

func open(t *testing.T, path string) *Gate {
	t.Helper()
	g, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func wantStale(t *testing.T, g *Gate, token, highest uint64) {
	t.Helper()
	err := g.Do(t.Context(), token, func() error { t.Errorf("token %d was admitted", token); return nil })
	if stale, ok := errors.AsType[*StaleError](err); !ok || stale.Token != token || stale.Highest != highest {
		t.Errorf("Do with token %d = %v, want it stale after %d", token, err, highest)
	}
}

func TestGateAdmitsWhatIsNotLower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fence")
	for _, g := range []*Gate{{}, open(t, path)} {
		wantStale(t, g, 0, 0)
		mine := errors.New("mine")
		for _, token := range []uint64{3, 3, 7, 7, 1<<64 - 1} {
			called := false
			if err := g.Do(t.Context(), token, func() error { called = true; return mine }); err != mine || !called {
				t.Errorf("Do with token %d = %v, called %t", token, err, called)
			}
			wantStale(t, g, token-1, token)
			wantStale(t, g, 1, token)
			if got := g.Highest(); got != token {
				t.Errorf("Highest = %d, want %d", got, token)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := g.Do(t.Context(), 1<<64-1, nothing); !errors.Is(err, ErrClosed) {
			t.Errorf("Do after Close = %v, want ErrClosed", err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Effects of one token run together, those of a higher one wait for them, and no lower
// one begins meanwhile.
func TestGateKeepsEffectsApart(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var g Gate
		free := make(chan struct{})
		var wg sync.WaitGroup
		running := 0
		for range 2 {
			wg.Go(func() { g.Do(t.Context(), 5, func() error { running++; <-free; return nil }) })
			synctest.Wait()
		}
		if running != 2 {
			t.Errorf("%d effects of one token run, want 2", running)
		}
		higher := false
		wg.Go(func() { g.Do(t.Context(), 6, func() error { higher = true; return nil }) })
		late := make(chan error, 1)
		synctest.Wait()
		wg.Go(func() { late <- g.Do(t.Context(), 5, nothing) })
		synctest.Wait()
		if higher || len(late) > 0 {
			t.Error("a higher token's effect runs beside a lower one's, or a lower one was admitted while it waits")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Do(ctx, 9, nothing); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do while another waits = %v, want its context's cause", err)
		}
		close(free)
		wg.Wait()
		if err := <-late; !higher || err == nil {
			t.Errorf("the higher token ran %t, the lower one after it: %v", higher, err)
		}
		if got := g.Highest(); got != 6 {
			t.Errorf("Highest = %d, want 6", got)
		}
	})
}

// One that gives up waiting leaves the gate as it was.
func TestGateAfterAWaitThatWasGivenUp(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var g Gate
		free := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { g.Do(t.Context(), 5, func() error { <-free; return nil }) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Do(ctx, 6, nothing); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v, want its context's cause", err)
		}
		if err := g.Do(t.Context(), 5, nothing); err != nil {
			t.Errorf("Do with the token that is the highest still = %v", err)
		}
		wg.Go(func() { g.Close() })
		synctest.Wait()
		if err := g.Do(t.Context(), 5, nothing); !errors.Is(err, ErrClosed) {
			t.Errorf("Do while Close waits = %v, want ErrClosed", err)
		}
		close(free)
		wg.Wait()
	})
}

// In any order of arrival, of the effects that run none has a lower token than one
// before it.
func TestGateOrdersAnyArrival(t *testing.T) {
	for seed := range uint64(50) {
		var g Gate
		r := rand.New(rand.NewPCG(seed, 0))
		var mu sync.Mutex
		var order []uint64
		var wg sync.WaitGroup
		for range 40 {
			token := r.Uint64N(20)
			wg.Go(func() {
				g.Do(t.Context(), token, func() error {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, token)
					return nil
				})
			})
		}
		wg.Wait()
		highest := uint64(0)
		for _, token := range order {
			if token < highest {
				t.Fatalf("seed %d: token %d after %d in %v", seed, token, highest, order)
			}
			highest = token
		}
	}
}

func TestGateRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fence")
	for token := uint64(10); token < 60; token += 10 {
		g := open(t, path)
		if want := (token - 10); token > 10 && g.Highest() != want {
			t.Errorf("Highest = %d after it was opened again, want %d", g.Highest(), want)
		}
		if err := g.Do(t.Context(), token, nothing); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrInUse) {
			t.Errorf("a second Open = %v, want ErrInUse", err)
		}
		g.Close()
	}
	if _, err := Open(filepath.Join(path, "no", "such")); err == nil {
		t.Error("Open without a directory: no error")
	}
}

// The file ends anywhere in its last line, after a crash: that token was not admitted.
func TestGateAfterACrash(t *testing.T) {
	dir := t.TempDir()
	text := string(line(41)) + string(line(42))
	for n := len(line(41)); n < len(text); n++ {
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, []byte(text[:n]), 0o600); err != nil {
			t.Fatal(err)
		}
		g := open(t, path)
		if got := g.Highest(); got != 41 {
			t.Errorf("Highest of %q = %d, want 41", text[:n], got)
		}
		if err := g.Do(t.Context(), 43, nothing); err != nil {
			t.Fatal(err)
		}
		g.Close()
		if got := open(t, path).Highest(); got != 43 {
			t.Errorf("Highest after it was written again = %d, want 43", got)
		}
	}
	for i, text := range []string{"garbage\n", "41\n", "41 00000000\n", string(line(42)) + string(line(41)), string(line(41)) + "garbage", "\n"} {
		path := filepath.Join(dir, fmt.Sprint("bad", i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open of %q = %v, want ErrCorrupt", text, err)
		}
	}
}

// What cannot be stored is not admitted.
func TestGateWhoseFileFails(t *testing.T) {
	g := open(t, filepath.Join(t.TempDir(), "fence"))
	if err := g.Do(t.Context(), 5, nothing); err != nil {
		t.Fatal(err)
	}
	g.store.f.Close()
	err := g.Do(t.Context(), 6, func() error { t.Error("admitted"); return nil })
	if !errors.Is(err, os.ErrClosed) || g.Highest() != 5 {
		t.Errorf("Do = %v, highest %d; want an error, and 5", err, g.Highest())
	}
}

// The last token of a file may be in memory alone: its sync failed, or a crash came
// before. It is written again and on the disk before the gate is open.
func TestGateStoresAgainWhatItFinds(t *testing.T) {
	for _, text := range []string{string(line(41)) + string(line(42)), string(line(41)) + string(line(42)) + "43 "} {
		path := filepath.Join(t.TempDir(), "fence")
		long := time.Now().Add(-time.Hour)
		again := func(sync func(s *store) error) (*Gate, error) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, long, long); err != nil {
				t.Fatal(err)
			}
			f, err := lock(path)
			if err != nil {
				t.Fatal(err)
			}
			s := &store{f: f}
			s.sync = func() error { return sync(s) }
			return newGate(s)
		}
		broken := errors.New("broken")
		if _, err := again(func(*store) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("a gate on %q that cannot be synced: %v, want its error", text, err)
		}
		synced := ""
		g, err := again(func(s *store) error {
			info, err := s.f.Stat()
			if err == nil && info.ModTime().After(long.Add(time.Minute)) { // the page is dirty
				data := make([]byte, info.Size())
				_, err = s.f.ReadAt(data, 0)
				synced = string(data)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := text[:len(line(41))+len(line(42))]; synced != want || g.Highest() != 42 {
			t.Errorf("a gate on %q stored %q and is at %d, want %q and 42", text, synced, g.Highest(), want)
		}
		g.Close()
	}
}
