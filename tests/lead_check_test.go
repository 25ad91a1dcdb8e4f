//go:build unix

package tests

import (
	"slices"
	"testing"
)

func TestCheckActsFindsWhatIsPlanted(t *testing.T) {
	good := []leadLine{{1, 10, 100, 200, true}, {1, 20, 100, 200, true}, {5, 30, 101, 201, true}, {5, 40, 101, 201, true}}
	if leaders, refused, wrong := checkActs(good, false); leaders != 2 || refused != 0 || wrong != nil {
		t.Errorf("a good run: %d leaders, %d refused, %v", leaders, refused, wrong)
	}
	late := append(slices.Clone(good), leadLine{1, 35, 100, 200, false})
	if leaders, refused, wrong := checkActs(late, true); leaders != 2 || refused != 1 || wrong != nil {
		t.Errorf("an act in the gap that was refused: %d leaders, %d refused, %v", leaders, refused, wrong)
	}
	for name, c := range map[string]struct {
		a   leadLine
		gap bool
	}{
		"refused, without a gap":     {leadLine{1, 20, 100, 200, false}, false},
		"begun before the last act":  {leadLine{6, 39, 102, 202, true}, false},
		"an old token is admitted":   {leadLine{1, 50, 100, 200, true}, true},
		"two processes of one token": {leadLine{5, 50, 102, 202, true}, true},
		"a token that falls":         {leadLine{3, 50, 102, 202, true}, true},
	} {
		if _, _, wrong := checkActs(append(slices.Clone(good), c.a), c.gap); wrong == nil {
			t.Errorf("%s: passed", name)
		}
	}
}
