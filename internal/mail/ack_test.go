package mail

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

var quiet = slog.New(slog.DiscardHandler)

func TestStored(t *testing.T) {
	o := New(natstest.Start(t).Connect(), Config{Name: "fab_c_e", Mail: "m.*.*", Dead: "x.*.*", Bytes: 1 << 20, Age: time.Hour, Quota: 1})
	for data, want := range map[string]error{
		`{"stream":"fab_c_e_mail", "seq":7}`:                   nil,
		`{"stream":"fab_c_e_mail","seq":7,"duplicate": true}`:  nil,
		`{"stream":"fab_c_e_mail","domain":"d","seq":7}`:       nil,
		`{"stream":"fab_c_e_mail","seq":7}`:                    nil,
		`{"stream":"fab_c_e_mail","seq":07}`:                   ErrForeign,
		`{"stream":"fab_c_e_mail","seq":18446744073709551617}`: ErrForeign,
		`{"stream":"fab_c_e_mail", "seq":0}`:                   ErrForeign,
		`{"stream":"fab_c_e_mail", "seq":}`:                    ErrForeign,
		`{"stream":"fab_c_e_mail", "seq":7x}`:                  ErrForeign,
		`{"stream":"fab_c_e_mail2", "seq":7}`:                  ErrForeign,
		`{"stream":"fab_c_e_dead", "seq":7}`:                   ErrForeign,
		`{}`:                                                   ErrForeign, ``: ErrForeign, `null`: ErrForeign, `7`: ErrForeign, `"x"`: ErrForeign,
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"},"stream":"fab_c_e_mail","seq":0}`: ErrFull,
		`{"error":{"code":503,"err_code":10077,"description":"d"},"stream":"another","seq":0}`:                                          ErrForeign,
		`{"error":{"code":400,"err_code":10054,"description":"d"},"stream":"fab_c_e_mail","seq":0}`:                                     ErrTooLarge,
		`{"error":{"code":503,"err_code":10008,"description":"d"}}`:                                                                     ErrBusy,
		`{"error":{"code":503,"err_code":1,"description":"d"}}`:                                                                         ErrBusy,
		`{"error":{"code":409,"err_code":10158,"description":"d"}}`:                                                                     ErrBusy,
	} {
		if at, err := o.Stored([]byte(data)); !errors.Is(err, want) || (err == nil) != (at.Seq == 7) {
			t.Errorf("Stored(%s) = %v, %v, want %v", data, at, err, want)
		}
	}
	for _, data := range []string{ // what is written for most, and what for some
		`{"stream":"fab_c_e_mail","domain":"hub","seq":7}`,
		`{"stream":"fab_c_e_mail","domain":"hub","seq":7,"duplicate": true}`,
		`{"stream":"fab_c_e_mail","domain":"h\u0075b","seq":7}`,
	} {
		if at, err := o.Stored([]byte(data)); err != nil || at != (Place{"hub", 7}) {
			t.Errorf("Stored(%s) = %v, %v", data, at, err)
		}
	}
	_, err := o.Stored([]byte(`{"error":{"code":400,"err_code":10071,"description":"d"}}`))
	if e, ok := errors.AsType[*jetstream.APIError](err); !ok || e.ErrorCode != 10071 {
		t.Errorf("another error: %v", err)
	}
}

// The server still writes what the fast path of stored reads.
func TestServerWritesWhatIsRead(t *testing.T) {
	nc := natstest.Start(t).Connect()
	o := New(nc, Config{Name: "fab_c_e", Mail: "m.*.*", Dead: "x.*.*", Bytes: 1 << 20, Age: time.Hour, Quota: 1, Logger: quiet})
	if err := o.Open(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	m, err := nc.Request("m.b.a", nil, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	at, err := o.Stored(m.Data)
	if plain, ok := plainAck("fab_c_e_mail", m.Data); err != nil || at.Seq == 0 || !ok || plain != at {
		t.Errorf("acknowledgement %q", m.Data)
	}
	m, err = nc.Request("m.b.a", nil, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Stored(m.Data)
	if _, ok := plainAck("fab_c_e_mail", m.Data); !errors.Is(err, ErrFull) || !Definite(err) || ok {
		t.Errorf("over the quota: %q", m.Data)
	}
}

func TestAfter(t *testing.T) {
	for _, c := range []struct {
		p, q Place
		want bool
	}{
		{Place{"", 8}, Place{"", 7}, true},
		{Place{"", 7}, Place{"", 7}, false},
		{Place{"", 1}, Place{"", 7}, false},
		{Place{"hub", 8}, Place{"hub", 7}, true},
		{Place{"hub", 8}, Place{"", 7}, false},
		{Place{"", 8}, Place{"hub", 7}, false},
	} {
		if got := c.p.After(c.q); got != c.want {
			t.Errorf("%v is after %v: %v, want %v", c.p, c.q, got, c.want)
		}
	}
}

// What is stored is not refused when its id comes again, whatever has no room: otherwise a
// refusal of that kind would not be Definite.
func TestServerLooksForTheIDFirst(t *testing.T) {
	nc := natstest.Start(t).Connect()
	o := New(nc, Config{Name: "fab_c_e", Mail: "m.*.*", Dead: "x.*.*", Bytes: 1 << 20, Age: time.Hour, Quota: 1, Logger: quiet})
	if err := o.Open(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	send := func(id string) (Place, error) {
		m, err := nc.RequestMsg(&nats.Msg{Subject: "m.b.a", Header: nats.Header{"Nats-Msg-Id": {id}}}, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return o.Stored(m.Data)
	}
	first, err := send("1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := send("2"); !errors.Is(err, ErrFull) || !Definite(err) {
		t.Errorf("over the quota: %v", err)
	}
	if again, err := send("1"); err != nil || again != first {
		t.Errorf("stored at %v, and again %v, %v", first, again, err)
	}
}

func TestDefinite(t *testing.T) {
	o := New(natstest.Start(t).Connect(), Config{Name: "fab_c_e", Mail: "m.*.*", Dead: "x.*.*", Bytes: 1 << 20, Age: time.Hour, Quota: 1})
	for code, want := range map[int]bool{10077: true, 10054: true, 10023: false, 10047: false, 10002: false, 10008: false, 10158: false, 10071: false} {
		_, err := o.Stored(fmt.Appendf(nil, `{"error":{"code":400,"err_code":%d,"description":"d"},"stream":"fab_c_e_mail","seq":0}`, code))
		if got := Definite(err); err == nil || got != want {
			t.Errorf("%d: Definite(%v) = %v, want %v", code, err, got, want)
		}
	}
	if Definite(ErrForeign) || Definite(nil) {
		t.Error("what is no refusal is definite")
	}
}
