package kv

// What is asked of JetStream, after the prefix of its API and before the stream.
const (
	verbAccount = "INFO"
	verbInfo    = "STREAM.INFO."
	verbCreate  = "STREAM.CREATE."
	verbUpdate  = "STREAM.UPDATE."
	verbGet     = "STREAM.MSG.GET."
)

// Name returns the bucket's name.
func Name(cluster, env string) string { return "fab_" + cluster + "_" + env }

func streamOf(bucket string) string { return "KV_" + bucket }

// subjects returns what begins the subjects of the JetStream API, and the one that a
// record is published to. A domain that is not the server's own is asked under its
// own prefix, and takes records there, too.
func subjects(bucket, domain string) (api, prefix string) {
	api, prefix = "$JS.API.", "$KV."+bucket+"."
	if domain != "" {
		api = "$JS." + domain + ".API."
		prefix = api + prefix
	}
	return api, prefix
}

// API begins the subjects of JetStream's API, of a domain or of none.
func API(domain string) string {
	api, _ := subjects("", domain)
	return api
}

// Needs are the subjects that a process publishes to in order to use a bucket. The
// server's permissions must allow them.
type Needs struct {
	Read   []string // ask for JetStream, the bucket's settings, a record
	Create []string // make the bucket
	Repair []string // change its settings
	prefix string
}

// NeedsOf returns the needs of a bucket.
func NeedsOf(bucket, domain string) Needs {
	api, prefix := subjects(bucket, domain)
	stream := streamOf(bucket)
	return Needs{
		Read:   []string{api + verbAccount, api + verbInfo + stream, api + verbGet + stream},
		Create: []string{api + verbCreate + stream},
		Repair: []string{api + verbUpdate + stream},
		prefix: prefix,
	}
}

// Write returns the subject that the record of key is published to, or those of a
// pattern of keys.
func (n Needs) Write(key string) string { return n.prefix + key }

// MailNeeds are the subjects that a process publishes to in order to use the streams of
// durable messages (internal/mail), beside those of the messages themselves.
type MailNeeds struct {
	Send   []string // find the streams, and who has a mailbox
	Take   []string // take what is in one's own mailbox, and acknowledge it
	Fetch  string   // the one of Take whose answer is many messages
	Create []string // make the streams
	Repair []string // change them, make and remove mailboxes, read dead letters
}

// MailNeedsOf returns the needs of the mail that belongs to a bucket. Every process has
// a consumer of its own. To make it is not in Take: who makes a consumer says where it
// delivers, and JetStream asks nobody whether that is allowed.
func MailNeedsOf(bucket, domain, pid string) MailNeeds {
	api, _ := subjects(bucket, domain)
	stream, dead := bucket+"_mail", bucket+"_dead"
	consumer := stream + ".mb-" + pid
	fetch := api + "CONSUMER.MSG.NEXT." + consumer
	return MailNeeds{
		Send:   []string{api + verbInfo + stream, api + verbInfo + dead, api + "CONSUMER.NAMES." + stream},
		Take:   []string{api + "CONSUMER.INFO." + consumer, fetch, "$JS.ACK." + consumer + ".>"},
		Fetch:  fetch,
		Create: []string{api + verbCreate + stream, api + verbCreate + dead},
		Repair: []string{
			api + verbUpdate + stream, api + verbUpdate + dead, api + verbGet + dead,
			api + "CONSUMER.CREATE." + stream + ".>", api + "CONSUMER.DELETE." + stream + ".*",
		},
	}
}
