package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
