package lease

import "context"

// AwaitExitBy has f say when a process has ended.
func (s *Session) AwaitExitBy(f func(ctx context.Context, process string) error) { s.awaitExit = f }

// BeatOf is the beat on which leases are renewed.
var BeatOf = beatOf
