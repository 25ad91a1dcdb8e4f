//go:build unix

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// leadEnv has the test binary be the command of a `fabric-node lead`: what it does is
// append to a file in the directory that it names.
const leadEnv = "NATSFABRIC_LEAD_CHILD"

func init() {
	if dir := os.Getenv(leadEnv); dir != "" {
		fmt.Fprintln(os.Stderr, beLeadChild(dir))
		os.Exit(1)
	}
}

// A leadLine is one line that a command wrote while its supervisor led, or would have if
// the fence had let it.
type leadLine struct {
	token      uint64
	at         int64 // on the clock that all processes share
	supervisor int   // its process
	pid        int   // of the command
	admitted   bool
}

// beLeadChild acts as often as it can until it is killed. Each act asks the fence,
// which is a file as a row of a database is: the highest token, read and written
// under a lock together with the act itself.
func beLeadChild(dir string) error {
	token, err := strconv.ParseUint(os.Getenv("FABRIC_LEADER_TOKEN"), 10, 64)
	if err != nil {
		return err
	}
	fence, err := os.OpenFile(filepath.Join(dir, "fence"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	acts, err := os.OpenFile(filepath.Join(dir, "acts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if err := leadAct(fence, acts, token); err != nil {
			return err
		}
	}
}

func leadAct(fence, acts *os.File, token uint64) error {
	began := sharedClock() // before the check: of this moment the leadership was claimed
	if err := syscall.Flock(int(fence.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	defer syscall.Flock(int(fence.Fd()), syscall.LOCK_UN)
	var text [20]byte
	n, _ := fence.ReadAt(text[:], 0) // empty at first
	highest, _ := strconv.ParseUint(string(bytes.TrimSpace(text[:n])), 10, 64)
	admitted := token >= highest
	if token > highest {
		if _, err := fence.WriteAt(fmt.Appendf(nil, "%020d", token), 0); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(acts, "%d %d %d %d %t\n", token, began, os.Getppid(), os.Getpid(), admitted)
	return err
}

// readActs reads what was written so far, whole lines only.
func readActs(dir string) (acts []leadLine, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "acts"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		var a leadLine
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		if _, err := fmt.Sscan(string(line), &a.token, &a.at, &a.supervisor, &a.pid, &a.admitted); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		acts = append(acts, a)
	}
	return acts, nil
}

// checkActs returns how many leaders there were and how many acts the fence refused, and
// what is wrong: an act that was admitted after one with a higher token, or, unless the
// gap between check and effect was made on purpose, two leaders that act in turn.
func checkActs(acts []leadLine, gap bool) (leaders, refused int, wrong []string) {
	type interval struct{ first, last leadLine }
	spans := map[uint64]*interval{}
	var order []uint64
	highest := uint64(0)
	for _, a := range acts {
		if !a.admitted {
			refused++
		} else if a.token < highest {
			wrong = append(wrong, fmt.Sprintf("%+v was admitted after token %d", a, highest))
		}
		highest = max(highest, a.token)
		if s := spans[a.token]; s == nil {
			spans[a.token] = &interval{a, a}
			order = append(order, a.token)
		} else {
			s.last = a
			if s.first.supervisor != a.supervisor && a.supervisor != 1 {
				wrong = append(wrong, fmt.Sprintf("token %d is of %d and of %d", a.token, s.first.supervisor, a.supervisor))
			}
		}
	}
	var before *interval
	for _, token := range order {
		s := spans[token]
		if before != nil && s.first.token < before.first.token && s.first.admitted {
			wrong = append(wrong, fmt.Sprintf("token %d after %d", token, before.first.token))
		}
		if before != nil && !gap && s.first.at < before.last.at {
			wrong = append(wrong, fmt.Sprintf("two act at once for %v: %+v and %+v",
				time.Duration(before.last.at-s.first.at), before.last, s.first))
		}
		if before == nil || s.last.at > before.last.at {
			before = s
		}
	}
	if refused > 0 && !gap {
		wrong = append(wrong, fmt.Sprintf("%d acts were for the fence to refuse", refused))
	}
	return len(order), refused, wrong
}
