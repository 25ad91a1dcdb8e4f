package natstest

// Fewer is n, or an eighth of it while the race detector is on, under which a test
// takes eight times as long: for the number of steps of a test that draws lots, and
// the time that it covers.
func Fewer[N ~int | ~int64](n N) N {
	if Race {
		return n / 8
	}
	return n
}
