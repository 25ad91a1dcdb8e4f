//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// mine reports whether the file belongs to this user.
func mine(st fs.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Getuid()
}
