package main

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/fabric"
)

// Defaults of the global flags.
const (
	defaultCluster = "fabric"
	defaultGroup   = "default"
	defaultTimeout = 5 * time.Second
)

// options are the global flags. A flag wins over its environment variable, which
// wins over the default.
type options struct {
	cluster, env, group, pid string
	server, context          string
	ttl, timeout             time.Duration
	output                   string
	role                     fabric.Role
	verbose, quiet           bool

	serverFlag bool // the server was named on the command line
}

// twins are the environment variables of the global flags. The PID's is not
// FABRIC_PID: `lead` sets that one for its command, which may use fabric-node too.
var twins = []struct{ flag, env string }{
	{"cluster", "FABRIC_CLUSTER"},
	{"env", "FABRIC_ENV"},
	{"group", "FABRIC_GROUP"},
	{"pid", "FABRIC_ID"},
	{"server", "FABRIC_SERVER"},
	{"ttl", "FABRIC_TTL"},
	{"timeout", "FABRIC_TIMEOUT"},
	{"output", "FABRIC_OUTPUT"},
	{"role", "FABRIC_ROLE"},
	{"verbose", "FABRIC_VERBOSE"},
	{"quiet", "FABRIC_QUIET"},
	{"context", "NATS_CONTEXT"},
}

// aliases are other names of flags; libcluster's, mostly.
var aliases = map[string]string{"key": "cluster", "partition": "group", "id": "pid"}

func normalize(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	return pflag.NormalizedName(cmp.Or(aliases[name], name))
}

func (o *options) bind(fs *pflag.FlagSet) {
	fs.StringVarP(&o.cluster, "cluster", "k", defaultCluster, "`name` of the fabric (alias --key)")
	fs.StringVarP(&o.env, "env", "e", fabric.DefaultEnv, "environment: tells fabrics of one `name` apart")
	fs.StringVarP(&o.group, "group", "p", defaultGroup, "balance `group` (alias --partition)")
	fs.StringVarP(&o.pid, "pid", "i", "", "PID of this process in the fabric (alias --id) (default a new unique id)")
	fs.StringVarP(&o.server, "server", "s", "", "NATS server `URL`[,URL] (alias -r, --registry) (default \""+fabric.DefaultURL+"\")")
	fs.DurationVar(&o.ttl, "ttl", fabric.DefaultLease, "lease: a crashed member is replaced after it")
	fs.DurationVar(&o.timeout, "timeout", defaultTimeout, "longest wait of one operation")
	fs.StringVarP(&o.output, "output", "o", formatTable, "output `format`: table, json or ndjson")
	fs.TextVar(&o.role, "role", fabric.RoleAdmin, "most that this process does, as its permissions allow: observer, member, candidate or admin")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "log more, on stderr")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "log errors only")
	fs.StringVar(&o.context, "context", "", "NATS context `name` as of the nats command; never taken unless named")
	// pflag knows one shorthand per flag, so -r is a hidden flag with the same value.
	fs.StringVarP(&o.server, "registry", "r", "", "alias of --server")
	fs.Lookup("registry").Hidden = true
	for _, t := range twins {
		f := fs.Lookup(t.flag)
		text, dflt, _ := strings.Cut(f.Usage, " (default")
		f.Usage = text + " [$" + t.env + "]"
		if dflt != "" {
			f.Usage += " (default" + dflt
		}
	}
}

// resolve fills in the environment and checks what can be checked without a server.
func (o *options) resolve(fs *pflag.FlagSet, lookup func(string) (string, bool)) error {
	o.serverFlag = fs.Changed("server") || fs.Changed("registry")
	for _, t := range twins {
		v, ok := lookup(t.env)
		if !ok || v == "" || fs.Changed(t.flag) || t.flag == "server" && o.serverFlag {
			continue
		}
		if err := fs.Lookup(t.flag).Value.Set(v); err != nil {
			return usagef("%s=%q: %s", t.env, v, plainParse(fs.Lookup(t.flag), err))
		}
	}
	o.env = cmp.Or(o.env, fabric.DefaultEnv) // as in a Config
	switch {
	case o.output != formatTable && o.output != formatJSON && o.output != formatNDJSON:
		return usagef("output format %q: choose table, json or ndjson", o.output)
	case o.verbose && o.quiet:
		return usagef("--verbose and --quiet exclude each other")
	case o.ttl < fabric.MinLease || o.ttl > fabric.MaxLease:
		return usagef("--ttl %v: choose between %v and %v", o.ttl, fabric.MinLease, fabric.MaxLease)
	case o.timeout <= 0:
		return usagef("--timeout %v: it must be positive", o.timeout)
	}
	return checkServers(o.server)
}

// plainParse says what a value should have been, without strconv's wrapping.
func plainParse(f *pflag.Flag, err error) string {
	switch f.Value.Type() {
	case "duration":
		return `not a duration; write it as "5s" or "1m30s"`
	case "bool":
		return "not true or false"
	case "int":
		if errors.Is(err, strconv.ErrRange) {
			return "the number is too large"
		}
		return "not a whole number"
	}
	return err.Error()
}

// flagError turns pflag's error into one that names the nearest flag.
func flagError(cmd *cobra.Command, err error) error {
	path := cmd.CommandPath()
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usagef("--%s %q: %s", e.GetFlag().Name, e.GetValue(), plainParse(e.GetFlag(), e.Unwrap())).see(path + " --help")
	}
	e, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usagef("%v", err).see(path + " --help")
	}
	if e.GetSpecifiedShortnames() != "" {
		return usagef("unknown flag -%s", e.GetSpecifiedName()).see(path + " --help")
	}
	name := e.GetSpecifiedName()
	if near := nearest(name, flagNames(cmd)); near != "" {
		return usagef("unknown flag --%s; did you mean --%s?", name, near).see(path + " --help")
	}
	return usagef("unknown flag --%s", name).see(path + " --help")
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	for alias := range aliases {
		names = append(names, alias)
	}
	return names
}

// nearest returns the candidate that name was probably meant to be, or "".
func nearest(name string, candidates []string) string {
	best, limit := "", max(1, len(name)/3)+1
	for _, c := range candidates {
		d := distance(name, c)
		if len(name) > 2 && strings.HasPrefix(c, name) {
			d = 1
		}
		if d < limit || d == limit && best != "" && c < best {
			best, limit = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two names, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// stringMap is the value of a repeatable flag of the form KEY=VALUE. A value may
// hold commas and equals signs.
type stringMap map[string]string

func (m *stringMap) Type() string { return "KEY=VALUE" }

func (m *stringMap) String() string {
	if m == nil || len(*m) == 0 {
		return ""
	}
	return fmt.Sprint(map[string]string(*m))
}

func (m *stringMap) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return errors.New("write it as KEY=VALUE")
	}
	if *m == nil {
		*m = stringMap{}
	}
	(*m)[k] = v
	return nil
}
