package embedded

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	credentialsName = "credentials.json"
	clientUser      = "fabric"
	systemUser      = "system"
	// maxCredentials bounds the file, which a person may write.
	maxCredentials = 64 << 10
)

// credentials are what a server asks of others. The type shows none of them.
type credentials struct {
	User     string `json:"user"`
	Password string `json:"password"`
	System   string `json:"system_password"`
	Cluster  string `json:"cluster_password"`
}

func (credentials) String() string   { return "credentials" }
func (credentials) GoString() string { return "credentials" }

// userInfo is what a client puts into a URL; nil if it needs nothing.
func (c *credentials) userInfo() *url.Userinfo {
	if c == nil {
		return nil
	}
	return url.UserPassword(c.User, c.Password)
}

// openCredentials reads the file at path, and makes it first if there is none.
func openCredentials(path string) (*credentials, error) {
	c, err := readCredentials(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeCredentials(path); err == nil || errors.Is(err, fs.ErrExist) {
			c, err = readCredentials(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: credentials: %w", ErrConfig, err)
	}
	return c, nil
}

func readCredentials(path string) (*credentials, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case !st.Mode().IsRegular() || st.Size() > maxCredentials:
		return nil, fmt.Errorf("%s is not a file of credentials", path)
	case st.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		return nil, fmt.Errorf("%s has mode %04o: others may read it; set 0600", path, st.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &credentials{}
	// The decoder's error could quote what it read.
	if json.Unmarshal(text, c) != nil || c.User == "" || c.User == systemUser || c.Password == "" || c.System == "" || c.Cluster == "" {
		return nil, fmt.Errorf("%s lacks user, password, system_password or cluster_password", path)
	}
	return c, nil
}

// makeCredentials writes random ones. The file appears complete or not at all, also
// after a power cut.
func makeCredentials(path string) error {
	text, err := json.MarshalIndent(credentials{clientUser, rand.Text(), rand.Text(), rand.Text()}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".credentials-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // of two that begin at once, one is first
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := dir.Sync(); err != nil && runtime.GOOS != "windows" { // which has no such thing
		return errors.Join(err, dir.Close())
	}
	return dir.Close()
}

// protect has the server ask for credentials, unless Options had it ask for
// something else. It returns nil if the server asks for nothing of ours.
func (cfg Config) protect(o *server.Options, dir string) (*credentials, error) {
	if hasAuthentication(o) || cfg.Insecure && cfg.Credentials == "" {
		return nil, nil
	}
	c, err := openCredentials(cmp.Or(cfg.Credentials, filepath.Join(dir, credentialsName)))
	if err != nil {
		return nil, err
	}
	o.CustomClientAuthentication = &guard{want: c}
	if o.Cluster.Port != 0 && o.Cluster.Username == "" {
		o.Cluster.Username, o.Cluster.Password = clusterUser, c.Cluster
		for _, r := range o.Routes {
			r.User = url.UserPassword(clusterUser, c.Cluster)
		}
	}
	if o.LeafNode.Port != 0 && o.LeafNode.Username == "" && len(o.LeafNode.Users) == 0 {
		o.LeafNode.Username, o.LeafNode.Password = clusterUser, c.Cluster
	}
	if len(cfg.Hub) > 0 {
		for _, r := range o.LeafNode.Remotes {
			for _, u := range r.URLs {
				u.User = url.UserPassword(clusterUser, c.Cluster)
			}
		}
	}
	return c, nil
}

// A guard lets in who is in the process or shows the credentials.
type guard struct {
	want   *credentials
	system atomic.Pointer[server.Server] // the one that runs
}

var _ server.Authentication = (*guard)(nil)

// Check implements [server.Authentication].
func (g *guard) Check(c server.ClientAuthentication) bool {
	opts := c.GetOpts()
	addr := c.RemoteAddress()
	inside := addr != nil && addr.Network() == "pipe"
	switch {
	case opts.Username == systemUser && (inside && opts.Password == "" || same(opts.Password, g.want.System)):
		c.RegisterUser(&server.User{Username: systemUser, Account: g.system.Load().SystemAccount()})
		return true
	case inside:
		return true
	}
	return opts.Username == g.want.User && same(opts.Password, g.want.Password)
}

// same compares in constant time.
func same(got, want string) bool {
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}
