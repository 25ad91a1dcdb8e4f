//go:build !linux

package main

import "os/exec"

// Only Linux makes a process the parent of its descendants' orphans: elsewhere who leaves
// the command's group is not found.

func adoptOrphans() {}

func startWaited(cmd *exec.Cmd) error { return cmd.Start() }

func forgetWaited(int) {}

func reapOrphans(<-chan struct{}) {}

func (c *child) strays() []int { return nil }
