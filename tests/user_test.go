package tests

import (
	"context"
	"testing"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// upper is a service as a user writes one, and upperTest the test of it that the
// user writes.
func upper(ctx context.Context, node *fabric.Node) error {
	return node.Handle(ctx, 4, func(_ context.Context, m *fabric.Message) ([]byte, error) {
		out := make([]byte, len(m.Data))
		for i, c := range m.Data {
			if out[i] = c; 'a' <= c && c <= 'z' {
				out[i] -= 'a' - 'A'
			}
		}
		return out, nil
	})
}

// must is what a user's test package has anyway.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestUser has eight statements: a server, a node on it, the service, a request.
func TestUser(t *testing.T) {
	srv := must(embedded.Start(t.Context(), embedded.Config{}))
	defer srv.Shutdown(context.Background())
	conn := must(srv.Connect())
	node := must(fabric.Join(t.Context(), fabric.Config{Cluster: "test", PID: "upper", Conn: conn}))
	defer node.Leave(context.Background())
	go upper(t.Context(), node)
	if reply := must(node.Request(t.Context(), "upper", []byte("hello"))); string(reply.Data) != "HELLO" {
		t.Errorf("upper answers %q, want HELLO", reply.Data)
	}
}
