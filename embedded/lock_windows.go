package embedded

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const errorSharingViolation = syscall.Errno(32)

// lock opens the lock file at path without sharing it, so that nobody else can
// until it is closed, which happens with the end of the process at the latest.
func lock(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	const share = 0
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, share, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, fmt.Errorf("%w: %s is locked", ErrStoreInUse, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: open %s: %w", ErrStore, path, err)
	}
	return os.NewFile(uintptr(h), path), nil
}
