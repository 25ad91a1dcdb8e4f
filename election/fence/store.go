package fence

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// A store is a file of tokens, one a line with a checksum, of which the last counts.
// A crash can leave a part of a line at its end, whose token was not admitted yet.
type store struct {
	f      *os.File
	sync   func() error
	size   int64 // of the whole lines
	broken error // nobody knows what the file holds
}

// Open returns a gate that remembers the highest token in the file at path, which it
// makes if there is none. It stores the token that it finds again, and fails if it cannot.
// Each token that is higher than all before costs a write and a sync. The caller must
// call Close.
func Open(path string) (*Gate, error) {
	f, err := lock(path)
	if err != nil {
		return nil, err
	}
	return newGate(&store{f: f, sync: f.Sync})
}

func newGate(s *store) (*Gate, error) {
	highest, err := s.load()
	if err == nil {
		err = syncDir(filepath.Dir(s.f.Name())) // it may be new
	}
	if err != nil {
		s.f.Close()
		return nil, fmt.Errorf("%s: %w", s.f.Name(), err)
	}
	return &Gate{store: s, highest: highest}, nil
}

func line(token uint64) []byte {
	text := strconv.FormatUint(token, 10)
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// load reads the highest token, cuts off a part of a line, and stores the last whole
// one again: it may never have reached the disk. After a sync that failed the system may
// take it for stored, so it must be written, not synced only.
func (s *store) load() (highest uint64, err error) {
	data, err := io.ReadAll(s.f)
	if err != nil {
		return 0, err
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	var last []byte
	for l := range bytes.Lines(whole) {
		text, _, _ := bytes.Cut(l, []byte(" "))
		token, err := strconv.ParseUint(string(text), 10, 64)
		if err != nil || !bytes.Equal(l, line(token)) || token <= highest {
			return 0, fmt.Errorf("%w: %q", ErrCorrupt, bytes.TrimSpace(l))
		}
		highest, last = token, l
	}
	s.size = int64(len(whole))
	if rest := data[len(whole):]; len(rest) > 0 {
		if len(rest) >= len(line(1<<64-1)) || !digits(rest) {
			return 0, fmt.Errorf("%w: it ends with %q", ErrCorrupt, rest)
		}
		if err := s.f.Truncate(s.size); err != nil {
			return 0, err
		}
	}
	if _, err := s.f.WriteAt(last, s.size-int64(len(last))); err != nil {
		return 0, err
	}
	return highest, s.sync()
}

// digits reports whether text may be a part of a line.
func digits(text []byte) bool {
	return len(bytes.Trim(text, "0123456789abcdef \x00")) == 0
}

// save makes token the last one of the file.
func (s *store) save(token uint64) error {
	if s.broken != nil {
		return s.broken
	}
	if _, err := s.f.WriteAt(line(token), s.size); err != nil {
		if cut := s.f.Truncate(s.size); cut != nil {
			s.broken = errors.Join(err, cut)
		}
		return err
	}
	if err := s.sync(); err != nil {
		s.broken = err // what is on the disk is anybody's guess, and a second sync no proof
		return err
	}
	s.size += int64(len(line(token)))
	return nil
}

func (s *store) close() error { return s.f.Close() }
