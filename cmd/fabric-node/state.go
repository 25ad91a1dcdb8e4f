package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

// writeState replaces the state file, if there is to be one.
func (c *crew) writeState(s balance.Share) error {
	if c.flags.stateFile == "" {
		return nil
	}
	state := workerState{PID: c.pid, Total: s.Total, Epoch: s.Epoch, Indices: []int{}}
	taken := map[int]bool{}
	for _, w := range c.workers {
		index := -1
		if w != nil {
			index = w.index
			taken[index] = true
		}
		state.Indices = append(state.Indices, index)
	}
	for i := range s.Indices() { // as hire will place them
		if taken[i] {
			continue
		}
		if local := slices.Index(state.Indices, -1); local >= 0 {
			state.Indices[local] = i
		} else {
			state.Indices = append(state.Indices, i)
		}
	}
	return replaceFile(c.flags.stateFile, state)
}

// workerState is what a state file holds.
type workerState struct {
	PID     fabric.PID `json:"pid"`
	Total   int        `json:"total"`
	Epoch   uint64     `json:"epoch"`
	Indices []int      `json:"indices"` // by FABRIC_WORKER_LOCAL; -1 for a worker without one
}

// replaceFile writes v into the file at once: a reader sees the old or the new.
func replaceFile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = file.Write(append(data, '\n'))
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}
