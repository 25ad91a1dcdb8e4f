package mail

import (
	"errors"
	"log/slog"
	"testing"
	"time"

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
		`{"error":{"code":400,"err_code":10054,"description":"d"},"stream":"fab_c_e_mail","seq":0}`:                                     ErrTooLarge,
		`{"error":{"code":503,"err_code":10008,"description":"d"}}`:                                                                     ErrBusy,
		`{"error":{"code":503,"err_code":1,"description":"d"}}`:                                                                         ErrBusy,
		`{"error":{"code":409,"err_code":10158,"description":"d"}}`:                                                                     ErrBusy,
	} {
		if seq, err := o.Stored([]byte(data)); !errors.Is(err, want) || (err == nil) != (seq == 7) {
			t.Errorf("Stored(%s) = %d, %v, want %v", data, seq, err, want)
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
	if seq, err := o.Stored(m.Data); err != nil || seq == 0 || plainAck("fab_c_e_mail", m.Data) != seq {
		t.Errorf("acknowledgement %q", m.Data)
	}
	m, err = nc.Request("m.b.a", nil, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Stored(m.Data); !errors.Is(err, ErrFull) || plainAck("fab_c_e_mail", m.Data) != 0 {
		t.Errorf("over the quota: %q", m.Data)
	}
}
