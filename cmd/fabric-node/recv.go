package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

type recvFlags struct {
	to    string
	count int
}

func newRecv(a *app) *cobra.Command {
	var f recvFlags
	cmd := &cobra.Command{
		Use:   "recv",
		Short: "Receive a file that another sends with send --file",
		Long: `Join the fabric as a member, take the next stream of bytes that is sent to it, and
write it to stdout, or to --to: a file, or a directory, in which it gets the name
it was sent with. What did not come whole is no success: the exit code is 1, and of a
file nothing is left.`,
		Example: `  fabric-node recv -k shop -i store --to backup.tar
  fabric-node send -k shop store --file backup.tar      # elsewhere
  fabric-node recv -k shop -i store --to inbox/ --count 10`,
		Args: exactly(0, 0, "[--to FILE or DIR] [--count N]"),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error { return a.recv(ctx, &f) }),
	}
	cmd.Flags().StringVar(&f.to, "to", "", "write to `PATH`, a file or a directory (default: stdout)")
	cmd.Flags().IntVar(&f.count, "count", 1, "receive `N` of them, one after the other")
	return cmd
}

func (a *app) recv(ctx context.Context, f *recvFlags) (err error) {
	if f.count < 1 {
		return usagef("--count %d: receive at least one", f.count)
	}
	ep, err := a.endpoint()
	if err != nil {
		return err
	}
	node, err := a.join(ctx, a.config(ep, false))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.leave(ctx, node, a.opts.timeout)) }()
	a.note("waiting as %s", node.PID())
	for range f.count {
		if err := a.recvOne(ctx, node, f.to); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) recvOne(ctx context.Context, node *fabric.Node, path string) error {
	s, err := node.AcceptStream(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	// A signal ends the copy, which waits for the stream and not for ctx.
	defer context.AfterFunc(ctx, func() { s.Close() })()
	began := time.Now()
	to, keep, err := a.sink(path, s.Name)
	if err != nil {
		return err
	}
	var n atomic.Int64
	stop := a.meter(s.Name, s.Size, n.Load)
	_, err = io.Copy(io.MultiWriter(to, counter{&n}), s)
	stop()
	if err == nil && s.Size >= 0 && n.Load() != s.Size {
		err = fmt.Errorf("%d bytes came, %s announced %d", n.Load(), s.From, s.Size)
	}
	if err = keep(err); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("receive from %s: %w", s.From, err)
	}
	if path == "" {
		return nil // stdout has the data
	}
	return a.transferred(fileObject{From: s.From, Name: s.Name, Bytes: n.Load(), Seconds: time.Since(began).Seconds()})
}

// sink opens where a stream named name is written to. keep completes it, or removes
// what there is of it after an error.
func (a *app) sink(path, name string) (to io.Writer, keep func(error) error, err error) {
	if path == "" {
		return a.stdout, func(err error) error { return err }, nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		// The name is the sender's: it must not lead anywhere else.
		if name == "" || name == "." || name == ".." || name == "-" || strings.ContainsAny(name, `/\:`) || filepath.Base(name) != name {
			name = "stream"
		}
		path = filepath.Join(path, name)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-*")
	if err != nil {
		return nil, nil, usagef("--to: %w", err)
	}
	return f, func(err error) error {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
		}
		return err
	}, nil
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
