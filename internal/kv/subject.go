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

// MailNeeds returns the needs of the streams of durable messages (internal/mail), in
// which every process has a consumer of its own: to read is to take what it has, and to
// acknowledge it. To make one is not in it: who makes a consumer says where it
// delivers, and JetStream asks nobody whether that is allowed.
func MailNeeds(bucket, domain, pid string) Needs {
	api, _ := subjects(bucket, domain)
	stream := bucket + "_mail"
	consumer, dead := stream+".mb-"+pid, bucket+"_dead"
	return Needs{
		Read: []string{
			api + verbInfo + stream, api + verbInfo + dead,
			api + "CONSUMER.NAMES." + stream,
			api + "CONSUMER.INFO." + consumer,
			api + "CONSUMER.MSG.NEXT." + consumer,
			"$JS.ACK." + consumer + ".>",
		},
		Create: []string{api + verbCreate + stream, api + verbCreate + dead},
		Repair: []string{api + verbUpdate + stream, api + verbUpdate + dead, api + verbGet + dead, api + "CONSUMER.CREATE." + stream + ".>", api + "CONSUMER.DELETE." + stream + ".*"},
	}
}
