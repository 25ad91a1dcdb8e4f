package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

// An event is one line of a stream: an object, or for people what happened and to
// whom.
type event interface {
	line() (what, details string)
}

// events writes a stream of events, each at once. It is safe for concurrent use.
type events struct {
	table bool

	mu  sync.Mutex
	w   io.Writer // guarded by mu, as are the next two
	enc *json.Encoder
	err error // the first failure; nothing is written after it
}

func (a *app) events() *events { return newEvents(a.stdout, a.table()) }

func newEvents(w io.Writer, table bool) *events {
	return &events{table: table, w: w, enc: newEncoder(w)}
}

func (e *events) emit(ev event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	if e.table {
		what, details := ev.line()
		line := time.Now().Format(time.TimeOnly) + "  " + what
		if details != "" {
			line = fmt.Sprintf("%s  %-12s  %s", time.Now().Format(time.TimeOnly), what, details)
		}
		_, e.err = fmt.Fprintln(e.w, line)
	} else {
		e.err = e.enc.Encode(ev)
	}
	return e.err
}

// joinedEvent: the node holds its PID; the first time, or again after lost.
type joinedEvent struct {
	Type        string     `json:"type"`
	PID         fabric.PID `json:"pid"`
	Incarnation uint64     `json:"incarnation"`
	Cluster     string     `json:"cluster"`
	Env         string     `json:"env"`
}

func (e joinedEvent) line() (string, string) {
	return e.Type, fmt.Sprintf("%s in %s/%s, incarnation %d", e.PID, e.Cluster, e.Env, e.Incarnation)
}

// nodeEvent: disconnected, reconnected, lost, left.
type nodeEvent struct {
	Type  string     `json:"type"`
	PID   fabric.PID `json:"pid"`
	Error string     `json:"error,omitempty"`
}

func (e nodeEvent) line() (string, string) {
	if e.Error != "" {
		return e.Type, fmt.Sprintf("%s: %s", e.PID, e.Error)
	}
	return e.Type, string(e.PID)
}

type messageEvent struct {
	Type      string     `json:"type"`
	From      fabric.PID `json:"from"`
	To        fabric.PID `json:"to"`
	ID        uint64     `json:"id"`
	Broadcast bool       `json:"broadcast"`
	Topic     string     `json:"topic,omitempty"`   // to which it was published
	Service   string     `json:"service,omitempty"` // of which it is a request
	Attempt   int        `json:"attempt,omitempty"` // of a durable message
	payload

	print bool // data in the line for people too
}

func newMessageEvent(m *fabric.Message, print bool) messageEvent {
	return messageEvent{
		Type: "message", From: m.From, To: m.To, ID: m.ID, Broadcast: m.To == fabric.Everyone && m.Topic == "", Attempt: m.Attempt(),
		Topic:   m.Topic,
		payload: newPayload(m.Data), print: print,
	}
}

func (e messageEvent) line() (string, string) {
	details := fmt.Sprintf("from %s%s, %d bytes", e.From, e.via(), e.size)
	if e.print {
		details += ": " + e.text()
	}
	return e.Type, details
}

// A payload is data if that is text, else data_base64.
type payload struct {
	Data       *string `json:"data,omitempty"`
	DataBase64 *string `json:"data_base64,omitempty"`
	size       int
}

// text is p for people.
func (p payload) text() string {
	if p.Data != nil {
		return *p.Data
	}
	return *p.DataBase64 + " (base64)"
}

func newPayload(data []byte) payload {
	p := payload{size: len(data)}
	if utf8.Valid(data) {
		p.Data = new(string(data))
	} else {
		p.DataBase64 = new(base64.StdEncoding.EncodeToString(data))
	}
	return p
}

// leaderEvent: who leads name now. An empty PID: nobody.
type leaderEvent struct {
	Type  string     `json:"type"`
	Name  string     `json:"name"`
	PID   fabric.PID `json:"pid"`
	Term  uint64     `json:"term"`
	Token uint64     `json:"token"`
	// Suspected: the leader is not heard. Successor: whom it handed over to.
	Suspected bool       `json:"suspected,omitempty"`
	Successor fabric.PID `json:"successor,omitempty"`
}

func newLeaderEvent(name string, l election.Leader) leaderEvent {
	return leaderEvent{"leader", name, l.PID, l.Term, l.Token, l.Suspected, l.Successor}
}

func (e leaderEvent) line() (string, string) {
	switch {
	case e.Successor != "":
		return e.Type, fmt.Sprintf("nobody leads %s, handed over to %s", e.Name, e.Successor)
	case e.PID == "":
		return e.Type, fmt.Sprintf("nobody leads %s", e.Name)
	case e.Suspected:
		return e.Type, fmt.Sprintf("%s leads %s, term %d, token %d, and is not heard", e.PID, e.Name, e.Term, e.Token)
	}
	return e.Type, fmt.Sprintf("%s leads %s, term %d, token %d", e.PID, e.Name, e.Term, e.Token)
}

type balancedEvent struct {
	Type    string `json:"type"`
	First   int    `json:"first"`
	Workers int    `json:"workers"`
	Total   int    `json:"total"`
	Epoch   uint64 `json:"epoch"`
	Indices []int  `json:"indices,omitempty"` // if they are no range
}

func newBalancedEvent(s balance.Share) balancedEvent {
	e := balancedEvent{Type: "balanced", First: s.First, Workers: s.Workers, Total: s.Total, Epoch: s.Epoch}
	if list := slices.Collect(s.Indices()); len(list) > 0 && list[len(list)-1]-list[0] >= len(list) {
		e.Indices = list
	}
	return e
}

func (e balancedEvent) line() (string, string) {
	switch {
	case e.First < 0 || e.Workers == 0:
		return e.Type, fmt.Sprintf("no index of %d", e.Total)
	case e.Indices != nil:
		return e.Type, fmt.Sprintf("indices %v of %d", e.Indices, e.Total)
	case e.Workers == 1:
		return e.Type, fmt.Sprintf("index %d of %d", e.First, e.Total)
	}
	return e.Type, fmt.Sprintf("indices %d-%d of %d", e.First, e.First+e.Workers-1, e.Total)
}

// partitionsEvent says who has how many partitions.
type partitionsEvent struct {
	Type   string             `json:"type"`
	Epoch  uint64             `json:"epoch"`
	Count  int                `json:"count"`
	Mine   int                `json:"mine"`
	Owners map[fabric.PID]int `json:"owners"`
}

func newPartitionsEvent(p *balance.Partitions) partitionsEvent {
	e := partitionsEvent{"partitions", p.Epoch, p.Count(), len(p.Mine()), map[fabric.PID]int{}}
	for i := range p.Count() {
		for _, owner := range p.OwnersOf(i) {
			e.Owners[owner]++
		}
	}
	return e
}

func (e partitionsEvent) line() (string, string) {
	var each []string
	for _, pid := range slices.Sorted(maps.Keys(e.Owners)) {
		each = append(each, fmt.Sprintf("%s %d", pid, e.Owners[pid]))
	}
	return e.Type, fmt.Sprintf("%d of %d; %s", e.Mine, e.Count, strings.Join(each, ", "))
}

// changeEvent is a change of the members, as `watch` sees it.
type changeEvent struct {
	Type        string     `json:"type"`
	PID         fabric.PID `json:"pid"`
	Incarnation uint64     `json:"incarnation"`
	Epoch       uint64     `json:"epoch"`
	Time        time.Time  `json:"time"`
	Reason      string     `json:"reason,omitempty"` // of fail
	host        string
}

func newChangeEvent(c fabric.Change, now time.Time) changeEvent {
	return changeEvent{c.Kind.String(), c.Member.PID, c.Member.Incarnation, c.Epoch, now.UTC(), c.Reason.String(), c.Member.Host}
}

func (e changeEvent) line() (string, string) {
	details := fmt.Sprintf("%s on %s, incarnation %d, epoch %d", e.PID, e.host, e.Incarnation, e.Epoch)
	if e.Reason != "" {
		details += ", by " + e.Reason
	}
	return e.Type, details
}

// memberEvent is a change of the members of a balance group.
type memberEvent struct {
	changeEvent
	Standing string `json:"standing"`
	First    int    `json:"first"` // -1: no index
	Workers  int    `json:"workers"`
}

func newMemberEvent(c balance.Change, now time.Time) memberEvent {
	return memberEvent{
		changeEvent{c.Kind.String(), c.Member.PID, c.Member.Incarnation, c.Epoch, now.UTC(), c.Reason.String(), ""},
		c.Member.Standing.String(), c.Member.First, c.Member.Workers,
	}
}

func (e memberEvent) line() (string, string) {
	details := fmt.Sprintf("%s, %s, %d workers, incarnation %d, epoch %d", e.PID, e.Standing, e.Workers, e.Incarnation, e.Epoch)
	if e.Reason != "" {
		details += ", by " + e.Reason
	}
	return e.Type, details
}
