package fabric

import "time"

// pastLinks are the links to this process that are over, by name. They are remembered,
// for linkIdle after something came at least, because a link must not begin again: what
// was accepted on it would be, once more. They are not looked through for that: those
// nothing has come on since the last turn but one are forgotten together.
type pastLinks struct {
	young, old map[string]*inLink
	turned     time.Time
}

// maxPast bounds pastLinks: when twice as many have ended within linkIdle, the first are
// forgotten sooner.
const maxPast = 16_384

func (p *pastLinks) add(in *inLink) {
	if p.young == nil || len(p.young) >= maxPast {
		p.turn()
	}
	p.young[in.name] = in
}

// named returns the link with a name, or nil. It is as young as if it had ended now.
func (p *pastLinks) named(name string) *inLink {
	in := p.young[name]
	if in == nil {
		if in = p.old[name]; in != nil {
			p.add(in)
		}
	}
	return in
}

func (p *pastLinks) turn() { p.young, p.old = make(map[string]*inLink), p.young }

// expire forgets some. The time in which nobody can be heard does not count.
func (p *pastLinks) expire(now time.Time, connected bool) {
	switch {
	case !connected:
		p.turned = now
	case now.Sub(p.turned) > linkIdle:
		p.turned = now
		p.turn()
	}
}

// inNamed returns the link to this process with a name, one that is over included, or
// nil. It needs s.mu.
func (s *links) inNamed(name string) *inLink {
	if in := s.in[name]; in != nil {
		return in
	}
	return s.past.named(name)
}

// retire ends a link. Its sender, should it go on, is told that there is no such link,
// but for a stream that it has ended: it goes on being told so. If it has not, its reader
// gets err. It needs s.mu and in.mu.
func (s *links) retire(in *inLink, err error) {
	delete(s.in, in.name)
	s.past.add(in)
	in.dropPartial()
	if in.stream == nil || !in.stream.fail(err) {
		in.win = nil
	}
	in.stream = nil // what was not read is its reader's
}
