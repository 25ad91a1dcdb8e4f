package main

import (
	"fmt"
	"os"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/natsfabric/natsfabric/fabric"
)

// A signing says who signs a user.
type signing struct {
	seedFile string // of the account's key, or of one of its signing keys
	account  string // the account's public key, if the seed is a signing key's
	scoped   bool   // the signing key has a template: the user carries none
}

// credentialsFor signs a user for one process, with a new key, and returns its
// credentials. The name of the user is the PID, and nothing but a legal PID is
// signed: under a template, a user named * would be everybody.
func credentialsFor(cfg fabric.Config, s fabric.Scope, by signing) (string, error) {
	if err := fabric.CheckPID(cfg.PID); err != nil {
		return "", err
	}
	p, err := cfg.Permissions(s)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(by.seedFile)
	if err != nil {
		return "", fmt.Errorf("signing key: %w", err)
	}
	defer clear(text)
	signer, err := nkeys.ParseDecoratedNKey(text)
	if err != nil { // the error of nkeys does not quote the seed; still, say only where it is
		return "", fmt.Errorf("signing key %s: the file holds no seed", by.seedFile)
	}
	defer signer.Wipe()
	user, err := nkeys.CreateUser()
	if err != nil {
		return "", err
	}
	defer user.Wipe()
	public, err := user.PublicKey()
	if err != nil {
		return "", err
	}
	c := jwt.NewUserClaims(public)
	c.Name, c.IssuerAccount = string(cfg.PID), by.account
	if by.scoped {
		c.SetScoped(true)
	} else {
		all := p.All()
		c.Pub.Allow, c.Sub.Allow = all.Publish, all.Subscribe
	}
	token, err := c.Encode(signer)
	if err != nil {
		return "", fmt.Errorf("sign the user %s: %w", cfg.PID, err)
	}
	seed, err := user.Seed()
	if err != nil {
		return "", err
	}
	creds, err := jwt.FormatUserConfig(token, seed)
	return string(creds), err
}
