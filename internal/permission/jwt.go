package permission

import (
	"bytes"
	"encoding/json"

	"github.com/natsfabric/natsfabric/fabric"
)

// An allowList is one side of a claim's permissions.
type allowList struct {
	Allow []string `json:"allow"`
}

// claim is the part of a user's claim, or of a signing key's template.
type claim struct {
	Pub allowList `json:"pub"`
	Sub allowList `json:"sub"`
}

func claimOf(p fabric.Permissions) claim {
	all := p.All()
	return claim{allowList{all.Publish}, allowList{all.Subscribe}}
}

// JWT returns the permissions of one process as they stand in a user's claim.
func JWT(cfg fabric.Config, s fabric.Scope) (string, error) {
	p, err := cfg.Permissions(s)
	if err != nil {
		return "", err
	}
	return indent(claimOf(p))
}

// ScopedJWT returns the template of a signing key, under which the name of every
// user that it signs is the PID.
func ScopedJWT(cfg fabric.Config, s fabric.Scope) (string, error) {
	p, err := cfg.PermissionsTemplate(s)
	if err != nil {
		return "", err
	}
	return indent(claimOf(p))
}

// indent prints v as JSON, with > and * as they are.
func indent(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return b.String(), err
}
