package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A severity is how bad a finding is. Its value is the exit code of `doctor`, as
// monitoring plugins have it.
type severity int

const (
	healthy severity = iota
	warning
	critical
	unknown // it could not be looked at
)

var severityNames = [...]string{"ok", "warning", "critical", "unknown"}

func (s severity) String() string               { return severityNames[s] }
func (s severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A finding is what one check found, and what to do about it.
type finding struct {
	Check    string   `json:"check"`
	Severity severity `json:"severity"`
	Message  string   `json:"message"`
	Fix      string   `json:"fix,omitempty"`
}

// findings are those of all checks, in the order of the checks.
type findings []finding

func (f *findings) add(check string, s severity, fix, format string, args ...any) {
	*f = append(*f, finding{check, s, fmt.Sprintf(format, args...), fix})
}

// worst is critical before unknown: what is known to be broken is to be mended first.
func (f findings) worst() severity {
	order := []severity{healthy, warning, unknown, critical}
	worst := healthy
	for _, one := range f {
		if slices.Index(order, one.Severity) > slices.Index(order, worst) {
			worst = one.Severity
		}
	}
	return worst
}

type doctorObject struct {
	Cluster  string   `json:"cluster"`
	Env      string   `json:"env"`
	Server   string   `json:"server"`
	Severity severity `json:"severity"`
	Findings findings `json:"findings"`
}

func newDoctor(a *app) *cobra.Command {
	var nagios bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with a fabric, and say how to mend it",
		Long: `Look at the connection, the server, JetStream, the bucket and its records, the
permissions of this user, the payload limit, the clocks, this process's limits and
the members, and say for each thing that is wrong how to mend it. Nothing is changed:
permissions are tried with what the server refuses or nobody receives; with --pid
they are those of that process, else of the one named doctor, in the role of --role.

Exit codes, unlike other commands': 0 all is well, 1 warnings, 2 critical, 3 it could
not be looked at, as monitoring plugins have it. With --nagios the output is theirs,
too.`,
		Example: `  fabric-node doctor -k shop
  fabric-node doctor -k shop -i web-1 --role candidate
  fabric-node doctor -k shop --nagios
  fabric-node doctor -k shop -o json | jq '.findings[] | select(.severity != "ok")'`,
		Args: exactly(0, 0, ""),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error {
			ep, err := a.endpoint()
			if err != nil {
				return err
			}
			return a.diagnose(ctx, ep, nagios)
		}),
	}
	cmd.Flags().BoolVar(&nagios, "nagios", false, "print as a monitoring plugin does")
	return cmd
}

// diagnose looks, prints, and turns the worst finding into the exit code.
func (a *app) diagnose(ctx context.Context, ep endpoint, nagios bool) error {
	d := &doctor{app: a, ep: ep, role: a.opts.role}
	d.look(ctx)
	for i := range d.found {
		d.found[i].Message, d.found[i].Fix = a.redact(d.found[i].Message), a.redact(d.found[i].Fix)
	}
	worst := d.found.worst()
	var err error
	switch {
	case nagios:
		err = a.nagios(d)
	case a.table():
		err = a.doctorText(d.found)
	default:
		err = a.object(doctorObject{a.opts.cluster, a.opts.env, redactServer(ep.url), worst, d.found})
	}
	if err == nil && worst != healthy {
		return &exitError{code: int(worst)}
	}
	return err
}

// doctorText prints a line for each finding, and under it what to do.
func (a *app) doctorText(found findings) error {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-8s  %-11s  %s\n", f.Severity, f.Check, f.Message)
		if f.Fix != "" {
			fmt.Fprintf(&b, "%-8s  %-11s  fix: %s\n", "", "", f.Fix)
		}
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

// nagios prints one line with what is wrong and the figures, then the rest.
func (a *app) nagios(d *doctor) error {
	worst := d.found.worst()
	var wrong []string
	for _, f := range d.found {
		if f.Severity != healthy {
			wrong = append(wrong, plain(f.Check+": "+f.Message))
		}
	}
	text := strings.Join(wrong, "; ")
	if text == "" {
		text = fmt.Sprintf("%d checks", len(d.found))
	}
	state := strings.ToUpper(worst.String())
	if _, err := fmt.Fprintf(a.stdout, "FABRIC %s: %s | %s\n", state, text, strings.Join(d.figures, " ")); err != nil {
		return err
	}
	for _, f := range d.found {
		if _, err := fmt.Fprintf(a.stdout, "%s %s: %s\n", f.Severity, f.Check, plain(f.Message)); err != nil {
			return err
		}
	}
	return nil
}

// plain takes out what has a meaning in a plugin's output.
func plain(s string) string { return strings.NewReplacer("|", "/", "\n", " ").Replace(s) }
