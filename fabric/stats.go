package fabric

// Stats counts the messages of a node since it joined. The counters are read one
// by one, not at one moment.
type Stats struct {
	// Sent were handed to the connection, or to the node's own inbox: sends,
	// broadcasts (once each, not once a receiver; so messages to a topic and queries)
	// and requests, but not answers.
	Sent uint64
	// Received were taken into the inbox, or the queue of a service.
	Received uint64
	// Undeliverable were found to have no receiver: sends, not requests, whose
	// callers were told.
	Undeliverable uint64
	// Rejected were delivered to the node and refused, the inbox being full, or the
	// queue of a service, or what waits to be read of a query; their senders were told,
	// in the last case who asked.
	Rejected uint64
	// Dropped were delivered to the node and dropped: by the inbox's policy, or by
	// nats.go because the node did not get to run, which is a defect.
	Dropped uint64
	// Invalid were not what the fabric's processes send, and dropped: without a
	// valid tag, forged, or made by JetStream.
	Invalid uint64
	// Repeated came again on a link, and were dropped. They are what was sent again
	// in vain.
	Repeated uint64
	// Stray came on a link that the node does not know, and were dropped; a process
	// that had the PID before may have known it. Their sender finds out.
	Stray uint64
	// Waiting is how many messages are in the inbox at the moment.
	Waiting int
	// Assembling is the memory, in bytes, that is reserved at the moment for messages in
	// parts: those that come, and those that wait to be received.
	Assembling int
	// Parked are the durable messages to this node that became dead letters.
	Parked uint64
	// Redelivered are the durable messages that came again after they had been
	// handled, and were not handed out.
	Redelivered uint64
}

// Stats returns the counts so far. They stay readable when the node has closed.
func (n *Node) Stats() Stats { return n.courier.stats() }

func (c *courier) stats() Stats {
	dropped := c.dropped.Load()
	if !c.closed.Load() {
		c.subsMu.Lock()
		dropped = max(dropped, c.channelDrops())
		c.subsMu.Unlock()
	}
	s := Stats{
		Sent:          c.sent.Load(),
		Undeliverable: c.clerk.count.Load(),
		Invalid:       c.invalid.Load(),
		Repeated:      c.repeated.Load(),
		Stray:         c.stray.Load(),
		Parked:        c.mail.parked.Load(),
		Redelivered:   c.mail.repeated.Load(),
	}
	c.inbox.stats(&s)
	s.Assembling = int(c.memory.reserved())
	c.services.stats(&s)
	s.Rejected += c.queries.refused.Load()
	s.Dropped += dropped
	return s
}
