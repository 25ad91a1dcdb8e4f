package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/permission"
)

// allowance are the flags of `permissions`.
type allowance struct {
	roles    [fabric.RoleAdmin + 1]bool // one flag for each role
	format   string
	accounts string
	nkey     string
	password string
	scoped   bool
	domain   string
	scope    fabric.Scope
	signing  signing
}

func (p *allowance) bind(fs *pflag.FlagSet) {
	fs.BoolVar(&p.roles[fabric.RoleObserver], "observer", false, "may read, send and ask")
	fs.BoolVar(&p.roles[fabric.RoleMember], "member", false, "may also be a member, and belong to groups (the default)")
	fs.BoolVar(&p.roles[fabric.RoleCandidate], "candidate", false, "may also lead and coordinate")
	fs.BoolVar(&p.roles[fabric.RoleAdmin], "admin", false, "may also create the bucket and change its settings")
	fs.StringVar(&p.format, "format", "conf", "`form`: conf, jwt (permissions of a claim) or creds (a signed user)")
	fs.StringVar(&p.accounts, "accounts", "", "whole accounts, for the arguments: `layout` shared, split or isolated")
	fs.StringVar(&p.nkey, "nkey", "", "public `key` of the user, instead of a password")
	fs.StringVar(&p.password, "password-var", "FABRIC_PASSWORD", "`variable` that the server reads the password from; with --accounts, _PID is appended")
	fs.BoolVar(&p.scoped, "scoped", false, "for a signing key's template: the user's name is the PID (jwt only)")
	fs.StringVar(&p.domain, "domain", "", "JetStream `domain` of the bucket, if the server is a leaf node of it")
	fs.StringSliceVar(&p.scope.Groups, "only-group", nil, "only these balance groups (`name`, repeatable)")
	fs.StringSliceVar(&p.scope.Elections, "only-election", nil, "only these elections (`name`, repeatable)")
	fs.StringSliceVar(&p.scope.Topics, "only-topic", nil, "only these topics (`name`, repeatable)")
	fs.StringSliceVar(&p.scope.Services, "only-service", nil, "only these services (`name`, repeatable)")
	fs.BoolVar(&p.scope.Micro, "micro", false, "also answer as a micro service, and plain NATS clients: it may then publish at _INBOX.>")
	fs.StringVar(&p.signing.seedFile, "signing-key", "", "`file` with the seed of the account or its signing key (creds only)")
	fs.BoolVar(&p.signing.scoped, "signing-key-scoped", false, "the signing key has the template of --scoped (creds only)")
	fs.StringVar(&p.signing.account, "issuer-account", "", "public `key` of the account, if the signing key is not its own (creds only)")
}

// role is the one that was chosen.
func (p *allowance) role() (fabric.Role, error) {
	role := fabric.Role(0)
	for r := fabric.RoleObserver; r <= fabric.RoleAdmin; r++ {
		if p.roles[r] && role != 0 {
			return 0, usagef("--%v and --%v exclude each other", role, r)
		}
		if p.roles[r] {
			role = r
		}
	}
	return cmp.Or(role, fabric.RoleMember), nil
}

func newPermissions(a *app) *cobra.Command {
	var p allowance
	cmd := &cobra.Command{
		Use:   "permissions [PID=ROLE]...",
		Short: "Print what a NATS server must allow a process, and nothing else",
		Long: `Print the allow-list with which everything works that the process --pid does in
its role, and nothing else: an entry for the users of a nats-server configuration,
or the permissions of a JWT. With --accounts and arguments, print the accounts of a
whole fabric. docs/SECURITY.md says what each layout protects.

A password is never printed: the server reads it from a variable. With --format
creds a user is signed, with a new key, and its credentials are printed: keep them
in a file that nobody else may read.`,
		Example: `  fabric-node permissions -k shop -i web-1 --member
  fabric-node permissions -k shop -i web-1 --candidate --format jwt
  fabric-node permissions -k shop --accounts isolated root=admin a=candidate b=member
  (umask 077; fabric-node permissions -k shop -i web-1 --format creds --signing-key s.nk >web-1.creds)`,
		Args: cobra.ArbitraryArgs, // their form is checked with the flags
		RunE: a.oneShot(func(_ context.Context, args []string) error { return a.permissions(&p, args) }),
	}
	p.bind(cmd.Flags())
	return cmd
}

func (a *app) permissions(p *allowance, args []string) (err error) {
	if p.scope.Role, err = p.role(); err != nil {
		return err
	}
	cfg := fabric.Config{Cluster: a.opts.cluster, Env: a.opts.env, PID: fabric.PID(a.opts.pid), Domain: p.domain}
	var text string
	switch {
	case p.accounts != "":
		text, err = p.wholeAccounts(cfg, args)
	case len(args) > 0:
		return usagef("%q: PIDs are arguments with --accounts only", args[0]).see("fabric-node permissions --help")
	case p.scoped:
		if p.format != "jwt" {
			return usagef("--scoped is for --format jwt")
		}
		text, err = permission.ScopedJWT(cfg, p.scope)
	case a.opts.pid == "":
		return usagef("--pid is missing: permissions are of one process").see("fabric-node permissions --help")
	case p.format == "conf":
		text, err = permission.Entry(permission.User{Config: cfg, Scope: p.scope, NKey: p.nkey, Credential: "$" + p.password})
	case p.format == "jwt":
		text, err = permission.JWT(cfg, p.scope)
	case p.format == "creds":
		text, err = credentialsFor(cfg, p.scope, p.signing)
	default:
		return usagef("--format %q: choose conf, jwt or creds", p.format)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.stdout, text)
	return err
}

// wholeAccounts are those of all processes in args.
func (p *allowance) wholeAccounts(cfg fabric.Config, args []string) (string, error) {
	if p.format != "conf" || len(args) == 0 {
		return "", usagef("--accounts prints a configuration of the processes in the arguments, PID=ROLE each")
	}
	var users []permission.User
	variables := map[string]fabric.PID{}
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		u := permission.User{Config: cfg, Scope: p.scope}
		u.Config.PID = fabric.PID(name)
		if text != "" {
			if err := u.Scope.Role.UnmarshalText([]byte(text)); err != nil {
				return "", usagef("%q: %w", arg, err)
			}
		}
		variable := p.password + "_" + strings.ReplaceAll(name, "-", "_")
		if other, taken := variables[variable]; taken {
			return "", usagef("%s and %s would have the same password, in %s", other, name, variable)
		}
		variables[variable] = u.Config.PID
		u.Credential = "$" + variable
		users = append(users, u)
	}
	text, err := permission.Accounts(permission.Layout(p.accounts), users)
	if err != nil {
		return "", usagef("%w", err)
	}
	return text, nil
}
