//go:build !unix

package main

import "syscall"

// changeSignals: a command can only be ended here.
var changeSignals = map[string]syscall.Signal{}
