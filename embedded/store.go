package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Where nats-server keeps what it has, below the store directory.
const (
	streamsDir = "jetstream"
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
// streams that the cluster does not know for orphans, and deletes them; a server by
// itself would go on from streams that the others have gone on from, too.
func (st *store) checkMode(clustered bool) error {
	accounts, err := filepath.Glob(filepath.Join(st.dir, streamsDir, "*", "streams", "*"))
	if err != nil || len(accounts) == 0 {
		return err
	}
	meta, err := filepath.Glob(filepath.Join(st.dir, streamsDir, "*", filepath.FromSlash(metaDir)))
	if err != nil || (len(meta) > 0) == clustered {
		return err
	}
	if clustered {
		return fmt.Errorf("%w: %s holds %d streams of a server by itself, which a member of a cluster would delete; "+
			"back them up from that server, start the cluster on an empty store, and restore them there",
			ErrStoreMode, st.dir, len(accounts))
	}
	return fmt.Errorf("%w: %s is the store of a member of a cluster: start it with its routes", ErrStoreMode, st.dir)
}
