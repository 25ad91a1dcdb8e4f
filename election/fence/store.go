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
	size   int64 // of the whole lines
	broken error // nobody knows what the file holds
}

// Open returns a gate that remembers the highest token in the file at path, which it
// makes if there is none. Each token that is higher than all before costs a write and
// a sync. The caller must call Close.
func Open(path string) (*Gate, error) {
	f, err := lock(path)
	if err != nil {
		return nil, err
	}
	s := &store{f: f}
	highest, err := s.load()
	if err == nil {
		err = syncDir(filepath.Dir(path)) // it may be new
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Gate{store: s, highest: highest}, nil
}

func line(token uint64) []byte {
	text := strconv.FormatUint(token, 10)
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// load reads the highest token, and cuts off a part of a line.
func (s *store) load() (highest uint64, err error) {
	data, err := io.ReadAll(s.f)
	if err != nil {
		return 0, err
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	for l := range bytes.Lines(whole) {
		text, _, _ := bytes.Cut(l, []byte(" "))
		token, err := strconv.ParseUint(string(text), 10, 64)
		if err != nil || !bytes.Equal(l, line(token)) || token <= highest {
			return 0, fmt.Errorf("%w: %q", ErrCorrupt, bytes.TrimSpace(l))
		}
		highest = token
	}
	s.size = int64(len(whole))
	if len(whole) == len(data) {
		return highest, nil
	}
	if rest := data[len(whole):]; len(rest) >= len(line(1<<64-1)) || !digits(rest) {
		return 0, fmt.Errorf("%w: it ends with %q", ErrCorrupt, rest)
	}
	if err := s.f.Truncate(s.size); err != nil {
		return 0, err
	}
	return highest, s.f.Sync()
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
	if err := s.f.Sync(); err != nil {
		s.broken = err // what is on the disk is anybody's guess, and a second sync no proof
		return err
	}
	s.size += int64(len(line(token)))
	return nil
}

func (s *store) close() error { return s.f.Close() }
