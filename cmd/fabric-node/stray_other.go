//go:build !linux

package main

// Only Linux makes a process the parent of its descendants' orphans: elsewhere who leaves
// the command's group is not found.

func adoptOrphans() {}

func startWaited(start func() (pid int, err error)) error {
	_, err := start()
	return err
}

func forgetWaited(int) {}

func reapOrphans(<-chan struct{}) {}

func (c *child) strays() []int { return nil }
