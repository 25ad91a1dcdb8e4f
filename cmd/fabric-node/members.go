package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newMembers(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List who is in the fabric",
		Long: `List the members of the fabric, once. It creates nothing: a fabric that nobody
ever joined is an empty list.`,
		Example: `  fabric-node members -k shop
  fabric-node members -k shop -o json | jq -r '.members[].pid'`,
		Args: exactly(0, 0, ""),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error {
			return a.observe(ctx, func(node *fabric.Node) error {
				view, err := a.view(ctx, node)
				if err != nil {
					return err
				}
				return a.printMembers(view)
			})
		}),
	}
}

// view waits for the members that are present now.
func (a *app) view(ctx context.Context, node *fabric.Node) (fabric.View, error) {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	for c, err := range node.Changes(ctx) {
		if err != nil {
			return fabric.View{}, fmt.Errorf("read the members: %w", err)
		}
		if c.Kind == fabric.Synced {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return fabric.View{}, fmt.Errorf("read the members: %w", err)
	}
	return node.View(), nil
}

type membersObject struct {
	Cluster string         `json:"cluster"`
	Env     string         `json:"env"`
	Epoch   uint64         `json:"epoch"`
	Members []memberObject `json:"members"`
}

type memberObject struct {
	PID         fabric.PID        `json:"pid"`
	Incarnation uint64            `json:"incarnation"`
	Host        string            `json:"host"`
	State       string            `json:"state"`
	Since       time.Time         `json:"since"`
	Meta        map[string]string `json:"meta"`
}

func (a *app) printMembers(view fabric.View) error {
	if a.table() {
		return a.membersTable(view, time.Now())
	}
	o := membersObject{a.opts.cluster, a.opts.env, view.Epoch, []memberObject{}}
	for _, m := range view.Members {
		meta := m.Meta
		if meta == nil {
			meta = map[string]string{}
		}
		o.Members = append(o.Members, memberObject{m.PID, m.Incarnation, m.Host, "up", m.Since.UTC(), meta})
	}
	return a.object(o)
}

func (a *app) membersTable(view fabric.View, now time.Time) error {
	if len(view.Members) == 0 {
		a.note("no members in %s/%s", a.opts.cluster, a.opts.env)
		return nil
	}
	t := newTable()
	t.AppendHeader(table.Row{"PID", "STATE", "HOST", "UP", "INCARNATION", "META"})
	t.SetColumnConfigs([]table.ColumnConfig{{Name: "UP", Align: text.AlignRight, AlignHeader: text.AlignRight}})
	for _, m := range view.Members {
		t.AppendRow(table.Row{m.PID, "up", m.Host, age(now.Sub(m.Since)), m.Incarnation, metaText(m.Meta)})
	}
	if _, err := fmt.Fprintln(a.stdout, t.Render()); err != nil {
		return err
	}
	a.note("%s in %s/%s, epoch %d", plural(len(view.Members), "member"), a.opts.cluster, a.opts.env, view.Epoch)
	return nil
}

// newTable is the look of every table: columns and blanks, no lines.
func newTable() table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

// age is a duration for a table: two units at most. Another machine's clock may
// be ahead.
func age(d time.Duration) string {
	d = max(d, 0)
	days, hours, minutes := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, int(d.Seconds())%60)
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}

func metaText(meta map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		pairs = append(pairs, k+"="+meta[k])
	}
	return strings.Join(pairs, " ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
