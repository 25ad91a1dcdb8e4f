package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// A login is the way into a server that this user started: a NATS context, which
// the nats command reads as well.
type login struct {
	Description string `json:"description"`
	URL         string `json:"url"`
	User        string `json:"user,omitempty"`
	Password    string `json:"password,omitempty"`
	CA          string `json:"ca,omitempty"`
	Domain      string `json:"jetstream_domain,omitempty"`
}

// loginPath is where the login of the server at addr is, for this user.
func loginPath(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	dir, err := os.UserCacheDir()
	if err != nil { // no HOME, as in some containers
		dir = filepath.Join(os.TempDir(), "cache-"+strconv.Itoa(os.Getuid()))
	}
	return filepath.Join(dir, "natsfabric", strings.ReplaceAll(host, ":", "_")+"_"+port+".json"), nil
}

// writeLogin writes the login of the server at addr, readable by this user only,
// and returns its path.
func writeLogin(addr, clientURLs, domain, ca string) (path string, err error) {
	l := login{Description: "started by fabric-node", Domain: domain}
	var urls []string
	for one := range strings.SplitSeq(clientURLs, ",") {
		u, err := url.Parse(one)
		if err != nil {
			return "", errors.New("the server's URL cannot be read")
		}
		l.User = u.User.Username()
		l.Password, _ = u.User.Password()
		u.User = nil
		urls = append(urls, u.String())
	}
	l.URL = strings.Join(urls, ",")
	if ca != "" {
		if l.CA, err = filepath.Abs(ca); err != nil {
			return "", err
		}
	}
	if path, err = loginPath(addr); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".login-*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return path, nil
}

// ownLogin is the login of a server that this user started on the loopback address
// in list, if that is one address without credentials, and there is one. A file that
// others could have written or read is none.
func ownLogin(list string) string {
	if strings.Contains(list, ",") {
		return ""
	}
	if !strings.Contains(list, "://") {
		list = "nats://" + list
	}
	u, err := url.Parse(list)
	if err != nil || u.User != nil {
		return ""
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = strconv.Itoa(nats.DefaultPort)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return ""
	}
	path, err := loginPath(net.JoinHostPort(host, port))
	if err != nil {
		return ""
	}
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || runtime.GOOS != "windows" && (st.Mode().Perm()&0o077 != 0 || !mine(st)) {
		return ""
	}
	return path
}
