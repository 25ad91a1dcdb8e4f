//go:build !unix

package natstest

import (
	"errors"
	"os"
)

func pauseProcess(*os.Process, bool) error { return errors.ErrUnsupported }

func lameDuck(*os.Process) error { return errors.ErrUnsupported }
