package fabric

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// A node with Config.Micro answers as a service of NATS's micro protocol (ADR-32)
// does, so that `nats micro` lists it. Only the protocol's records are micro's: its
// services answer to whatever reply subject a request names, with their own rights,
// and so would delete a stream, or write a key, for whoever asks. A node answers at
// _INBOX. addresses only.
const (
	// microVersion is that of the wire, in the form that the protocol wants.
	microVersion = wireVersion + ".0.0"
	// microInbox is the name of the endpoint that stands for the node itself.
	microInbox = "inbox"
)

// microName is what the nodes of a fabric are called as services, and microID one of
// them.
func microName(cluster string) string { return "fab-" + cluster }
func microID(c Config) string         { return c.Env + "_" + string(c.PID) }

// microTopics are the subjects at which a node is asked one thing: as any service, as
// one of its fabric, and as itself.
func microTopics(c Config, verb micro.Verb) [3]string {
	every := micro.APIPrefix + "." + verb.String()
	name := every + "." + microName(c.Cluster)
	return [3]string{every, name, name + "." + microID(c)}
}

// microSubjects are those of everything that a node is asked.
func microSubjects(c Config) (all []string) {
	for _, verb := range [...]micro.Verb{micro.PingVerb, micro.InfoVerb, micro.StatsVerb} {
		topics := microTopics(c, verb)
		all = append(all, topics[:]...)
	}
	return all
}

// registerMicro subscribes to what is asked of services.
func (n *Node) registerMicro() error {
	who := micro.ServiceIdentity{Name: microName(n.cfg.Cluster), ID: microID(n.cfg), Version: microVersion}
	started := time.Now().UTC()
	for verb, answer := range map[micro.Verb]func(micro.ServiceIdentity) any{
		micro.PingVerb: func(who micro.ServiceIdentity) any {
			return micro.Ping{ServiceIdentity: who, Type: micro.PingResponseType}
		},
		micro.InfoVerb: func(who micro.ServiceIdentity) any {
			info := micro.Info{
				ServiceIdentity: who, Type: micro.InfoResponseType, Endpoints: []micro.EndpointInfo{},
				Description: "A node of the fabric " + n.cfg.Cluster + "/" + n.cfg.Env,
			}
			for _, e := range n.courier.endpoints() {
				info.Endpoints = append(info.Endpoints, micro.EndpointInfo{Name: e.Name, Subject: e.Subject, QueueGroup: e.QueueGroup})
			}
			return info
		},
		micro.StatsVerb: func(who micro.ServiceIdentity) any {
			return micro.Stats{ServiceIdentity: who, Type: micro.StatsResponseType, Started: started, Endpoints: n.courier.endpoints()}
		},
	} {
		for _, subject := range microTopics(n.cfg, verb) {
			if _, err := n.courier.subscribe(subject, func(m *nats.Msg) { n.answerMicro(m, who, answer) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// answerMicro answers m, unless it is no plain client's, or the node is no member at
// the moment.
func (n *Node) answerMicro(m *nats.Msg, who micro.ServiceIdentity, answer func(micro.ServiceIdentity) any) {
	if !isInboxAddress(m.Reply) || isForeign(m.Header) {
		n.courier.drop(m)
		return
	}
	session := n.holder.Load()
	if session == nil {
		return
	}
	st, _ := session.State()
	if st.Hold == nil {
		return
	}
	who.Metadata = map[string]string{
		"cluster": n.cfg.Cluster, "env": n.cfg.Env, "pid": string(n.cfg.PID),
		"incarnation": strconv.FormatUint(st.Hold.Incarnation, 10),
	}
	data, err := json.Marshal(answer(who))
	if err == nil {
		err = n.courier.nc.Publish(m.Reply, data)
	}
	if err != nil {
		n.cfg.Logger.Debug("question about the service not answered", "pid", n.cfg.PID, "err", err)
	}
}

// endpoints are the inbox, unless it is off, and the services, those of one name
// together; each with the subject at which a plain NATS client reaches it.
func (c *courier) endpoints() []*micro.EndpointStats {
	all := []*micro.EndpointStats{}
	if !c.off {
		inbox := &micro.EndpointStats{Name: microInbox, Subject: c.subj.external(c.subj.peer(c.cfg.pid))}
		var stats Stats
		c.inbox.stats(&stats)
		inbox.NumRequests = int(stats.Received)
		inbox.Data, _ = json.Marshal(c.stats()) // of integers: it does not fail
		all = append(all, inbox)
	}
	byName := make(map[string]*micro.EndpointStats)
	c.services.mu.Lock()
	defer c.services.mu.Unlock()
	for _, s := range c.services.running {
		e := byName[s.name]
		if e == nil {
			e = &micro.EndpointStats{
				Name: s.name, Subject: c.subj.external(c.subj.service(s.name)), QueueGroup: c.subj.group(),
			}
			byName[s.name] = e
			all = append(all, e)
		}
		s.addTo(e)
	}
	return all
}

// addTo adds what s did to e.
func (s *service) addTo(e *micro.EndpointStats) {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	e.NumRequests += s.stats.requests
	e.NumErrors += s.stats.errors
	e.ProcessingTime += s.stats.busy
	if e.NumRequests > 0 {
		e.AverageProcessingTime = e.ProcessingTime / time.Duration(e.NumRequests)
	}
	if s.stats.lastError != "" {
		e.LastError = s.stats.lastError
	}
}

// external is a subject of this node's with the plain client's name for its own.
func (s subjects) external(subject string) string {
	return strings.TrimSuffix(subject, string(s.me)) + string(External)
}
