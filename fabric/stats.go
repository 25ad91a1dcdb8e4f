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
	// Rejected were delivered to the node and dropped, the inbox being full, or the
	// queue of a service, or what waits to be read of a query.
	Rejected uint64
	// Invalid were not what the fabric's processes send, and dropped: without a
	// valid tag, forged, or made by JetStream.
	Invalid uint64
}

// Stats returns the counts so far. They stay readable when the node has closed.
func (n *Node) Stats() Stats { return n.courier.stats() }

func (c *courier) stats() Stats {
	received, rejected := c.inbox.counts()
	served, refused := c.services.counts()
	received, rejected = received+served, rejected+refused+c.queries.refused.Load()
	dropped := c.dropped.Load()
	if !c.closed.Load() {
		c.subsMu.Lock()
		dropped = max(dropped, c.channelDrops())
		c.subsMu.Unlock()
	}
	return Stats{
		Sent:          c.sent.Load(),
		Received:      received,
		Undeliverable: c.clerk.count.Load(),
		Rejected:      rejected + dropped,
		Invalid:       c.invalid.Load(),
	}
}
