package fabric

import "testing"

func TestBelowFloor(t *testing.T) {
	for version, want := range map[string]bool{
		"2.10.27": true, "2.11.6": true, "2.12.0": true, "2.12.6": true, "2.12.7": false, "2.12.12": false,
		"2.13.0": true, "2.14.0": false, "2.14.0-RC.1": false, "2.15.2": false, "3.0.0": false, "1.4.1": true,
		"": false, "dev": false, "2": false,
	} {
		if got := belowFloor(version); got != want {
			t.Errorf("belowFloor(%q) = %v, want %v", version, got, want)
		}
	}
}
