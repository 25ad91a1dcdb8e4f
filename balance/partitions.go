package balance

import (
	"hash/fnv"
	"iter"
	"maps"
	"slices"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// Partitions are the partitions of a group as of one view, and who has each. They are
// never modified.
type Partitions struct {
	// Epoch is the number of the view.
	Epoch uint64

	count  int
	zone   string                  // this member's; "" without Config.PerZone
	owners map[string][]fabric.PID // by zone and partition; empty where nobody has it
	own    slots
}

// Count returns how many there are. It changes only by being doubled.
func (p *Partitions) Count() int { return p.count }

// Of returns the partition that key belongs to: its FNV-1a hash, 64 bits, modulo Count.
// It is the same at every member, in every version. Without partitions it is -1.
func (p *Partitions) Of(key string) int {
	if p.count == 0 {
		return -1
	}
	h := fnv.New64a()
	h.Write([]byte(key))
	return int(h.Sum64() % uint64(p.count))
}

// Owner returns the member that has the partition of key, as far as this member knows;
// "" if nobody has. With [Config.PerZone] it is the one in this member's own zone.
func (p *Partitions) Owner(key string) fabric.PID { return p.OwnerOf(p.Of(key)) }

// OwnerOf returns the member that has the partition i, as Owner does for a key.
func (p *Partitions) OwnerOf(i int) fabric.PID { return p.in(p.zone, i) }

func (p *Partitions) in(zone string, i int) fabric.PID {
	if owners := p.owners[zone]; i >= 0 && i < len(owners) {
		return owners[i]
	}
	return ""
}

// Owners yields all who have the partition of key, with their zones, sorted by zone:
// with [Config.PerZone] one for each zone where there is one, else the one that Owner
// returns, under the zone "".
func (p *Partitions) Owners(key string) iter.Seq2[string, fabric.PID] { return p.OwnersOf(p.Of(key)) }

// OwnersOf yields all who have the partition i, as Owners does for a key.
func (p *Partitions) OwnersOf(i int) iter.Seq2[string, fabric.PID] {
	return func(yield func(string, fabric.PID) bool) {
		for _, zone := range slices.Sorted(maps.Keys(p.owners)) {
			if pid := p.in(zone, i); pid != "" && !yield(zone, pid) {
				return
			}
		}
	}
}

// Mine returns the partitions that this member has, in ascending order. In a strict
// mode it has them as long as its lease holds, and nobody else does; with
// [Config.PerZone] nobody else in its zone.
func (p *Partitions) Mine() []int { return slices.Collect(p.own.all()) }

// Has reports whether this member has the partition of key.
func (p *Partitions) Has(key string) bool {
	i := p.Of(key)
	return i >= 0 && p.own.has(i)
}

func (p *Partitions) mine() slots {
	if p == nil {
		return ""
	}
	return p.own
}

// withoutSelf returns p as it is for a member that has nothing any more.
func (p *Partitions) withoutSelf() *Partitions {
	if p == nil {
		return nil
	}
	q := &Partitions{Epoch: p.Epoch, count: p.count, zone: p.zone, owners: maps.Clone(p.owners)}
	owners := slices.Clone(p.owners[p.zone])
	for i := range p.own.all() {
		if i < len(owners) {
			owners[i] = ""
		}
	}
	q.owners[p.zone] = owners
	return q
}

// partitionsOf returns the partitions of a view, nil if it has none. own is what the
// member self acts on, and zone where it is.
func partitionsOf(self, zone string, v *roster.View, own slots) *Partitions {
	k := parseKind(v.Kind)
	if !k.parts || v.Units < 1 || v.Units > MaxPartitions {
		return nil
	}
	if !k.zoned {
		zone = ""
	}
	p := &Partitions{Epoch: v.Epoch, count: v.Units, zone: zone, owners: map[string][]fabric.PID{}, own: own}
	set := func(zone, pid string, s slots) {
		if s != "" && p.owners[zone] == nil {
			p.owners[zone] = make([]fabric.PID, v.Units)
		}
		for i := range s.all() {
			if i < v.Units {
				p.owners[zone][i] = fabric.PID(pid)
			}
		}
	}
	for _, m := range v.Members {
		if m.PID != self && !m.Away {
			set(k.zone(m), m.PID, slots(m.Slots))
		}
	}
	set(zone, self, own)
	return p
}
