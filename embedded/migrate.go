package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// chunkTimeout bounds the wait for one piece of a stream.
	chunkTimeout = 30 * time.Second
	// answerTimeout bounds the wait for an answer that may never come.
	answerTimeout = time.Second
	settlePoll    = 100 * time.Millisecond
	// placeTimeout is for how long servers may hold each other to be offline.
	placeTimeout = 10 * time.Second
	// moves is how often a stream is copied whose consumers do not stand where they did.
	moves   = 3
	noPeers = jetstream.ErrorCode(server.JSClusterNoPeersErrF)
)

// Migrate copies every stream of the store of a server by itself to the servers that
// to is connected to, with replicas copies each: messages under their sequences,
// consumers as they stood. It returns the names of the streams that are there now.
// The store is read by a server that nobody else can reach; it stays as it is, and is
// the backup. No other server may use it, and no member of a fabric may run.
//
// The error wraps [ErrStore] if store is no directory with streams. If it has streams
// that its server does not find, because they are those of other accounts or cannot be
// recovered, the error names them, and nothing is copied. A stream is copied again if a
// durable consumer does not stand where it did, and the third time that is an error; the
// stream is there then. A stream that is there already
// is an error, and left alone: Migrate can be tried again after the half that was copied
// has been deleted.
func Migrate(ctx context.Context, store string, to *nats.Conn, replicas int) (names []string, err error) {
	kept, err := keptIn(store)
	if err != nil {
		return nil, err
	}
	src, err := Start(ctx, Config{Addr: None, StoreDir: store})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Shutdown(context.WithoutCancel(ctx))) }()
	from, err := src.Connect()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	js, err := jetstream.New(from)
	if err != nil {
		return nil, err
	}
	all, err := recovered(ctx, js, store, kept)
	if err != nil {
		return nil, err
	}
	if err := awaitAnswers(ctx, to); err != nil {
		return nil, err
	}
	for _, name := range all {
		if err := moveStream(ctx, name, from, to, replicas); err != nil {
			return names, fmt.Errorf("embedded: migrate %s: %w", name, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// keptIn returns the streams of a store, of which there are some.
func keptIn(store string) ([]stored, error) {
	if store == "" {
		return nil, fmt.Errorf("%w: no directory to migrate from", ErrStore)
	}
	if _, err := os.Stat(store); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	kept, _, err := inStore(store)
	if err == nil && len(kept) == 0 {
		err = fmt.Errorf("%w: %s has no streams: it is not the store of a server, or was never used", ErrStore, store)
	}
	return kept, err
}

// recovered returns the names of the streams that the server on a store has, which are
// to be those that are kept there.
func recovered(ctx context.Context, js jetstream.JetStream, store string, kept []stored) ([]string, error) {
	names := js.StreamNames(ctx)
	var all []string
	for name := range names.Name() {
		all = append(all, name)
	}
	if err := names.Err(); err != nil {
		return nil, fmt.Errorf("embedded: streams of %s: %w", store, err)
	}
	var missing, advice []string
	for _, k := range kept {
		why := "look why in the log of a server on this store, or delete the directory of a stream to give it up"
		if k.account != server.DEFAULT_GLOBAL_ACCOUNT {
			why = "move the accounts from a server that has them, with: nats account backup, nats account restore"
		} else if slices.Contains(all, k.stream) {
			continue
		}
		missing = append(missing, k.account+"/"+k.stream)
		if !slices.Contains(advice, why) {
			advice = append(advice, why)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("embedded: %d of %d streams of %s are not found by a server without accounts: %s; %s",
			len(missing), len(kept), store, strings.Join(missing, ", "), strings.Join(advice, "; "))
	}
	return all, nil
}

// awaitAnswers returns when the servers answer on this connection. Of those that have
// just met, one may answer before it has learned where the asker is; a restore cannot
// be asked for twice.
func awaitAnswers(ctx context.Context, nc *nats.Conn) error {
	for {
		try, cancel := context.WithTimeout(ctx, answerTimeout)
		err := ask(try, nc, server.JSApiAccountInfo, nil, nil)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("embedded: the servers to migrate to: %w", err)
		}
	}
}

// moveStream copies a stream, and looks whether its consumers stand where they did: the
// servers may lose that when they make copies. Then it is all done again.
func moveStream(ctx context.Context, name string, from, to *nats.Conn, replicas int) error {
	before, err := positions(ctx, from, name)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		err := placed(ctx, func() error { return copyStream(ctx, name, from, to) })
		if err == nil && replicas > 1 {
			err = settleCopies(ctx, to, name, replicas)
		}
		if err != nil {
			return err
		}
		after, err := positions(ctx, to, name)
		if err != nil {
			return err
		}
		lost := ""
		for consumer, seq := range before {
			if after[consumer] < seq {
				lost = fmt.Sprintf("consumer %s stands at %d, was at %d", consumer, after[consumer], seq)
			}
		}
		switch {
		case lost == "":
			return nil
		case n == moves:
			return errors.New(lost)
		}
		if err := ask(ctx, to, fmt.Sprintf(server.JSApiStreamDeleteT, name), nil, nil); err != nil {
			return fmt.Errorf("%s; delete it to copy it again: %w", lost, err)
		}
	}
}

// copyStream hands each piece of a snapshot to the restoring server, one at a time.
func copyStream(ctx context.Context, name string, from, to *nats.Conn) error {
	pieces, err := from.SubscribeSync(from.NewInbox())
	if err != nil {
		return err
	}
	defer pieces.Unsubscribe() // fails on a closed connection only
	var snapshot struct {
		Config map[string]any `json:"config"`
		State  map[string]any `json:"state"`
	}
	if err := ask(ctx, from, fmt.Sprintf(server.JSApiStreamSnapshotT, name), map[string]any{"deliver_subject": pieces.Subject}, &snapshot); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	snapshot.Config["num_replicas"] = 1 // grown later: a server may block for good restoring several at once
	var restore struct {
		Subject string `json:"deliver_subject"`
	}
	if err := ask(ctx, to, fmt.Sprintf(server.JSApiStreamRestoreT, name), snapshot, &restore); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for {
		piece, err := next(ctx, pieces)
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		if len(piece.Data) == 0 {
			if status := piece.Header.Get("Status"); status != "" && status != "204" {
				return fmt.Errorf("snapshot: %s %s", status, piece.Header.Get("Description"))
			}
			break
		}
		if err := deliver(ctx, to, restore.Subject, piece.Data); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if piece.Reply != "" {
			if err := piece.Respond(nil); err != nil {
				return fmt.Errorf("snapshot: %w", err)
			}
		}
	}
	if err := deliver(ctx, to, restore.Subject, []byte{}); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// placed calls f again while the servers refuse to place a stream because they hold
// others of them to be offline, which they do for a moment after they met.
func placed(ctx context.Context, f func() error) error {
	limit := time.NewTimer(placeTimeout)
	defer limit.Stop()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		err := f()
		refused, ok := errors.AsType[*jetstream.APIError](err)
		if !ok || refused.ErrorCode != noPeers || !strings.Contains(refused.Description, "offline") {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// deliver hands a piece to the server that restores. Between servers the answer that
// names the subject may overtake the news that somebody listens there: then nobody
// has got the piece, and it is sent again.
func deliver(ctx context.Context, to *nats.Conn, subject string, piece []byte) error {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		err := ask(ctx, to, subject, piece, nil)
		if !errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

// ask sends a request of JetStream's API, or raw bytes, and decodes the answer.
func ask(ctx context.Context, nc *nats.Conn, subject string, request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	data, raw := request.([]byte)
	if !raw && request != nil {
		var err error
		if data, err = json.Marshal(request); err != nil {
			return err
		}
	}
	msg, err := nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		return err
	}
	if len(msg.Data) == 0 {
		return nil
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(msg.Data, answer)
}
