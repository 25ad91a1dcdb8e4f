package main

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
)

const hidden = "***"

var (
	// A run of text from one scheme to the next one, to a blank or to a quote.
	schemeRun = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://`)
	// A colon that no port follows, as in user:password without a host.
	noPort = regexp.MustCompile(`:([^0-9/:\],][^/,\s"]*|[0-9]+[^0-9/:,\s"][^/,\s"]*)`)
)

// redact removes from a text everything that may be a secret: the known ones of
// this invocation, and the user part of whatever looks like a URL. It rather
// removes a host too many than leave a piece of a password with '@' or ',' in it.
func (a *app) redact(text string) string {
	for _, s := range a.secrets() {
		text = strings.ReplaceAll(text, s, hidden)
	}
	return redactURLs(text)
}

// addSecrets has the passwords in a list of URLs hidden from now on.
func (a *app) addSecrets(list string) {
	var found []string
	if old := a.own.Load(); old != nil {
		found = *old
	}
	for one := range strings.SplitSeq(list, ",") {
		if u, err := url.Parse(one); err == nil && u.User != nil {
			if p, has := u.User.Password(); has {
				found = append(found[:len(found):len(found)], p)
			}
		}
	}
	a.own.Store(&found)
}

// secrets are the passwords and tokens in this invocation's flags and environment.
func (a *app) secrets() []string {
	var found []string
	add := func(s string) {
		if len(s) > 3 { // a shorter one would black out half the text, and say where
			found = append(found, s)
		}
	}
	if own := a.own.Load(); own != nil {
		found = append(found, *own...)
	}
	for _, name := range []string{"NATS_PASSWORD", "NATS_TOKEN", "NATS_SEED", "NATS_JWT"} {
		add(os.Getenv(name))
		add(os.Getenv(controlName(name)))
	}
	for _, list := range []string{a.opts.server, os.Getenv("FABRIC_SERVER"), os.Getenv("NATS_URL")} {
		for one := range strings.SplitSeq(list, ",") {
			if u, err := url.Parse(strings.TrimSpace(one)); err == nil && u.User != nil {
				password, has := u.User.Password()
				add(password)
				if !has {
					add(u.User.Username()) // nats://TOKEN@host
				}
			}
		}
	}
	return found
}

// redactURLs removes the user part of every URL in text, malformed ones and lists
// of them included.
func redactURLs(text string) string {
	starts := schemeRun.FindAllStringIndex(text, -1)
	if starts == nil {
		return text
	}
	var b strings.Builder
	b.WriteString(text[:starts[0][0]])
	for i, at := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		body := text[at[1]:end]
		if cut := strings.LastIndexByte(body, '@'); cut >= 0 {
			body = hidden + body[cut:]
		} else {
			stop := len(body)
			if blank := strings.IndexAny(body, " \t\n\""); blank >= 0 {
				stop = blank
			}
			body = redactPort(body[:stop]) + body[stop:]
		}
		b.WriteString(text[at[0]:at[1]] + body)
	}
	return b.String()
}

// redactPort hides what stands in a port's place and is none. A text such as
// "nats://host:4222: connection refused" ends its URL with a colon.
func redactPort(s string) string {
	if strings.HasPrefix(s, "[") { // an IPv6 address
		if end := strings.IndexByte(s, ']'); end >= 0 {
			return s[:end+1] + redactPort(s[end+1:])
		}
	}
	return noPort.ReplaceAllString(s, ":"+hidden)
}

// checkServers checks a list of server URLs as given by the user.
func checkServers(list string) error {
	if list == "" {
		return nil
	}
	for one := range strings.SplitSeq(list, ",") {
		if !validServer(strings.TrimSpace(one)) {
			// An '@' or a "[:port]" in the form itself would be taken for a secret.
			err := fmt.Errorf("server %q is not of the form nats://host:4222", redactServer(list))
			return &exitError{exitUsage, err, "tls, ws and wss are possible, too; give user and password as NATS_USER and NATS_PASSWORD"}
		}
	}
	return nil
}

func validServer(s string) bool {
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return false
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
		return true
	}
	return false
}

// redactServer is redact for a value that is meant as a list of URLs. Of a list in
// which not every server is told from a piece of a password, little is left.
func redactServer(list string) string {
	var clear []string
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		scheme, rest, ok := strings.Cut(one, "://")
		if !validServer(one) || !ok && strings.Contains(list, "@") {
			return redactMalformed(list)
		}
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			one = scheme + "://" + hidden + rest[at:]
		}
		clear = append(clear, one)
	}
	return strings.Join(clear, ",")
}

func redactMalformed(list string) string {
	scheme := schemeRun.FindString(list)
	if !strings.HasPrefix(list, scheme) {
		scheme = ""
	}
	if at := strings.LastIndexByte(list, '@'); at >= 0 {
		return scheme + hidden + list[at:]
	}
	if host, _, colon := strings.Cut(list[len(scheme):], ":"); colon {
		return scheme + host + ":" + hidden
	}
	return list
}
