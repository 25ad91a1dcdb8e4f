package natstest

import (
	"slices"
	"testing"
	"time"
)

func TestCheckBeliefsFindsWhatIsPlanted(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	good := []Belief{
		{"a", 0, 1, 10, at(0), at(5)}, {"b", 0, 2, 20, at(5), at(9)}, {"a", 0, 3, 30, at(12), at(12)}, {"c", 0, 5, 31, at(20), at(30)},
	}
	if wrong := CheckBeliefs(good); len(wrong) > 0 {
		t.Errorf("a good history: %v", wrong)
	}
	again := append(slices.Clone(good), Belief{"a", 1, 1, 40, at(31), at(32)})
	if wrong := CheckBeliefs(again); len(wrong) > 0 {
		t.Errorf("terms that begin again in a new bucket: %v", wrong)
	}
	for _, instant := range [][]Belief{ // two terms that begin at once, the first of which is over at once
		{{"a", 0, 1, 10, at(0), at(0)}, {"b", 0, 2, 20, at(0), at(9)}}, {{"b", 0, 2, 20, at(0), at(9)}, {"a", 0, 1, 10, at(0), at(0)}},
	} {
		if wrong := CheckBeliefs(instant); len(wrong) > 0 {
			t.Errorf("two terms of one instant: %v", wrong)
		}
	}
	if wrong := CheckBeliefs([]Belief{{"a", 0, 1, 10, at(0), at(1)}, {"b", 0, 2, 20, at(0), at(9)}}); len(wrong) == 0 {
		t.Error("two that begin at once and last: passed")
	}
	if wrong := Leaderless(good, []time.Time{at(1), at(9), at(11), at(25)}, 11*time.Second); len(wrong) > 0 {
		t.Errorf("a history that goes on: %v", wrong)
	}
	if wrong := Leaderless(good, []time.Time{at(9)}, 2*time.Second); len(wrong) != 1 {
		t.Errorf("a vacancy of 3 s passed a bound of 2 s")
	}
	if wrong := Leaderless(good, []time.Time{at(31)}, time.Hour); len(wrong) != 1 {
		t.Errorf("a vacancy at the end passed")
	}
	for name, bad := range map[string]Belief{
		"overlaps the end":        {"d", 0, 4, 30, at(19), at(21)},
		"overlaps by a little":    {"d", 0, 2, 11, at(4), at(5)},
		"within another":          {"d", 0, 6, 32, at(22), at(23)},
		"contains another":        {"d", 0, 4, 30, at(13), at(40)},
		"same term":               {"d", 0, 5, 40, at(31), at(32)},
		"same process, overlap":   {"c", 0, 6, 40, at(29), at(31)},
		"token falls":             {"d", 0, 6, 25, at(31), at(32)},
		"token stays":             {"d", 0, 6, 31, at(31), at(32)},
		"term falls":              {"d", 0, 4, 40, at(31), at(32)},
		"ends before it begins":   {"d", 0, 6, 40, at(33), at(32)},
		"begins inside the first": {"d", 0, 1, 9, at(1), at(2)},
	} {
		if wrong := CheckBeliefs(append(slices.Clone(good), bad)); len(wrong) == 0 {
			t.Errorf("%s: passed", name)
		}
	}
}
