//go:build linux

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCrewLogFindsWhatIsPlanted: the log by which TestCrew judges sees two workers that
// have one index at one time, for how long, and a stopped one that its epoch does not
// keep from acting.
func TestCrewLogFindsWhatIsPlanted(t *testing.T) {
	beats := func(index, epoch int, pid string, process int, from, to time.Duration) (lines []string) {
		for at := from; at <= to; at += beatEvery {
			lines = append(lines, fmt.Sprintf("%d %d %s %d %d\n", index, epoch, pid, process, at))
		}
		return lines
	}
	ms := time.Millisecond
	for name, tt := range map[string]struct {
		lines         [][]string
		overlaps      int
		longest       time.Duration
		late, unfence int
	}{
		"one after the other": {[][]string{beats(0, 1, "a", 1, 0, 100*ms), beats(0, 2, "b", 2, 110*ms, 300*ms)}, 0, 0, 0, 0},
		"two indices":         {[][]string{beats(0, 1, "a", 1, 0, 300*ms), beats(1, 1, "b", 2, 0, 300*ms)}, 0, 0, 0, 0},
		"both at once":        {[][]string{beats(0, 1, "a", 1, 0, 200*ms), beats(0, 2, "b", 2, 150*ms, 300*ms)}, 1, 50 * ms, 0, 0},
		"three at once": {[][]string{
			beats(0, 1, "a", 1, 0, 200*ms), beats(0, 2, "b", 2, 150*ms, 300*ms), beats(0, 3, "c", 3, 100*ms, 280*ms),
		}, 3, 130 * ms, 0, 0},
		"stopped, with a former epoch": {[][]string{
			beats(0, 1, "a", 1, 0, 100*ms), beats(0, 2, "b", 2, 2000*ms, 5000*ms), beats(0, 1, "a", 1, 4000*ms, 4000*ms),
		}, 0, 0, 1, 0},
		"stopped, with the newest epoch": {[][]string{
			beats(0, 2, "a", 1, 0, 100*ms), beats(0, 2, "b", 2, 2000*ms, 5000*ms), beats(0, 2, "a", 1, 4000*ms, 4000*ms),
		}, 0, 0, 1, 1},
	} {
		path := filepath.Join(t.TempDir(), "log")
		var text strings.Builder
		for _, lines := range tt.lines {
			text.WriteString(strings.Join(lines, ""))
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		l := &shiftLog{t: t, path: path, shifts: map[[2]int]*shift{}}
		overlaps, longest, which := l.overlaps()
		if overlaps != tt.overlaps || longest != tt.longest || len(l.late) != tt.late || len(l.unfenced()) != tt.unfence {
			t.Errorf("%s: %d overlaps, the longest of %v (%v), %d late, %d not fenced; want %d, %v, %d, %d",
				name, overlaps, longest, which, len(l.late), len(l.unfenced()), tt.overlaps, tt.longest, tt.late, tt.unfence)
		}
	}
}
