package balance

// A Pin is a share, and the partitions, frozen for one unit of work: the whole unit
// goes by the same indices and the same total, whatever happens meanwhile, and asks at
// the end whether they still were its own.
type Pin struct {
	Share      Share
	Partitions *Partitions

	g             *Group
	moves, losses uint64
}

// Pin returns the current share, to go by for one unit of work.
func (g *Group) Pin() *Pin {
	st := g.state.Load()
	p := &Pin{Share: g.trusted(st), Partitions: st.parts, g: g, moves: st.moves, losses: st.losses}
	if p.Partitions == nil {
		p.Partitions = &Partitions{}
	}
	return p
}

// Valid reports whether the share is, and all the time was, the one of the pin: the
// same indices of the same total, and the same partitions. A newer view that says the
// same does not matter; one that said something else does, as far as this process has
// heard of it, although the share may be as it was by now. It says nothing of the moment
// after; in the mode [Default] nor of what others believe.
func (p *Pin) Valid() bool {
	st := p.g.state.Load()
	return p.Share.First >= 0 && st.moves == p.moves && st.losses == p.losses && p.g.trusted(st).same(p.Share)
}
