package fence

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const errorSharingViolation = syscall.Errno(32)

// lock opens the file at path without sharing it, so that nobody else can until it is
// closed, at the end of the process at the latest.
func lock(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("fence: %w", err)
	}
	const share = 0
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, share, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, fmt.Errorf("%w: %s", ErrInUse, path)
	}
	if err != nil {
		return nil, fmt.Errorf("fence: open %s: %w", path, err)
	}
	return os.NewFile(uintptr(h), path), nil
}

// syncDir does nothing: a directory cannot be synced here, and a file's own sync keeps
// its name.
func syncDir(string) error { return nil }
