// Package latest holds one value that changes, for readers that want the newest
// and do not need the ones between.
package latest

import "sync"

// A Value is the newest T. The zero Value holds T's zero value. It is safe for
// concurrent use.
type Value[T any] struct {
	mu      sync.Mutex // guards the fields below
	v       T
	changed chan struct{}
}

// Load returns the value and a channel that is closed at the next [Value.Store].
func (l *Value[T]) Load() (T, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.v, l.changed
}

// Get returns the value.
func (l *Value[T]) Get() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.v
}

// Store replaces the value and wakes everyone who waits for a change.
func (l *Value[T]) Store(v T) { l.Update(func(T) (T, bool) { return v, true }) }

// Update replaces the value by what f makes of it, unless f reports false. f must
// not use l.
func (l *Value[T]) Update(f func(T) (T, bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := f(l.v)
	if !ok {
		return
	}
	l.v = v
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
