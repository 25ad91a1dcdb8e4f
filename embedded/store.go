package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Where nats-server keeps what it has, below the store directory.
const (
	jetstreamDir = "jetstream"
	// streamsDir is where an account has a directory for each stream.
	streamsDir = "streams"
	// metaDir is there if and only if the server was a member of a cluster. The
	// account in it is the system's.
	metaDir = "_js_/_meta_"
)

// lockName is the lock file in a store directory. The server keeps its data in a
// subdirectory.
const lockName = "embedded.lock"

// store is a directory that no other server of this package uses.
type store struct {
	dir  string
	temp bool
	lock *os.File
}

// openStore makes and locks dir, or a private temporary directory if dir is empty.
func openStore(dir string) (*store, error) {
	st := &store{dir: dir, temp: dir == ""}
	if st.temp {
		tmp, err := os.MkdirTemp("", "natsfabric-")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStore, err)
		}
		st.dir = tmp
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	f, err := lock(filepath.Join(st.dir, lockName))
	if err != nil {
		return nil, errors.Join(err, st.remove())
	}
	st.lock = f
	return st, nil
}

// close releases the directory, and removes a temporary one.
func (st *store) close() error {
	return errors.Join(st.lock.Close(), st.remove())
}

func (st *store) remove() error {
	if !st.temp {
		return nil
	}
	return os.RemoveAll(st.dir)
}

// checkMode refuses a store of the other kind of server. A member of a cluster takes
// streams that the cluster does not know for orphans, and deletes them: those of a
// server by itself, and those that such a server would make on a member's store. It
// would also go on from streams that the others have gone on from.
func (st *store) checkMode(clustered bool) error {
	streams, member, err := inStore(st.dir)
	if err != nil {
		return err
	}
	switch {
	case clustered && len(streams) > 0 && !member:
		return fmt.Errorf("%w: %s holds %d streams of a server by itself, which a member of a cluster would delete; "+
			"back them up from that server, start the cluster on an empty store, and restore them there",
			ErrStoreMode, st.dir, len(streams))
	case !clustered && member:
		return fmt.Errorf("%w: %s is the store of a member of a cluster: start it with its routes", ErrStoreMode, st.dir)
	}
	return nil
}

// A stored stream is one that a store has a directory of.
type stored struct{ account, stream string }

// inStore returns the streams of a store, and whether a member of a cluster made it.
func inStore(dir string) (streams []stored, member bool, err error) {
	root := filepath.Join(dir, jetstreamDir)
	accounts, err := list(root)
	if err != nil {
		return nil, false, err
	}
	for _, account := range accounts {
		meta, err := list(filepath.Join(root, account, filepath.FromSlash(metaDir)))
		if err != nil {
			return nil, false, err
		}
		member = member || meta != nil
		names, err := list(filepath.Join(root, account, streamsDir))
		if err != nil {
			return nil, false, err
		}
		for _, name := range names {
			if !strings.HasPrefix(name, ".") { // being deleted
				streams = append(streams, stored{account, name})
			}
		}
	}
	return streams, member, nil
}

// list returns the names in a directory but for files, nil if there is no directory.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
