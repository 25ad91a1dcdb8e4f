package main

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newMail(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "mail",
		Short: "Show the mail that waits, and the dead letters",
		Long: `Show how many durable messages wait for whom, and the dead letters: those that a
receiver could not handle, with who, why and how often. It changes nothing.`,
		Example: `  fabric-node mail -k shop
  fabric-node mail -k shop -o json | jq -r '.dead[].reason'`,
		Args: exactly(0, 0, ""),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error {
			return a.observe(ctx, func(node *fabric.Node) error {
				ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
				defer cancel()
				counts, err := node.Mail(ctx)
				if err != nil {
					return err
				}
				var dead []*fabric.DeadLetter
				for d, err := range node.DeadLetters(ctx) {
					if err != nil {
						return err
					}
					dead = append(dead, d)
				}
				if a.table() {
					return a.mailTable(counts, dead, time.Now())
				}
				return a.object(newMailObject(counts, dead))
			})
		}),
	}
}

type mailObject struct {
	Mail []mailCount  `json:"mail"`
	Dead []deadObject `json:"dead"`
}

type mailCount struct {
	PID     fabric.PID `json:"pid"`
	Mailbox bool       `json:"mailbox"`
	Waiting int        `json:"waiting"`
}

type deadObject struct {
	Seq      uint64     `json:"seq"`
	From     fabric.PID `json:"from"`
	To       fabric.PID `json:"to"`
	ID       uint64     `json:"id"`
	Attempts int        `json:"attempts"`
	Reason   string     `json:"reason"`
	Parked   time.Time  `json:"parked"`
	payload
}

func newMailObject(counts []fabric.MailCount, dead []*fabric.DeadLetter) mailObject {
	o := mailObject{[]mailCount{}, []deadObject{}}
	for _, c := range counts {
		o.Mail = append(o.Mail, mailCount(c))
	}
	for _, d := range dead {
		m := d.Message
		o.Dead = append(o.Dead, deadObject{d.Seq, m.From, m.To, m.ID, d.Attempts, d.Reason, d.Parked.UTC(), newPayload(m.Data)})
	}
	return o
}

// printable is a stranger's text without what a terminal would act on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func (a *app) mailTable(counts []fabric.MailCount, dead []*fabric.DeadLetter, now time.Time) error {
	right := func(names ...string) (all []table.ColumnConfig) {
		for _, name := range names {
			all = append(all, table.ColumnConfig{Name: name, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
		return all
	}
	waiting := 0
	t := newTable()
	t.AppendHeader(table.Row{"PID", "MAILBOX", "WAITING"})
	t.SetColumnConfigs(right("WAITING"))
	for _, c := range counts {
		has := "no"
		if c.Mailbox {
			has = "yes"
		}
		waiting += c.Waiting
		t.AppendRow(table.Row{c.PID, has, c.Waiting})
	}
	if len(counts) > 0 {
		if _, err := fmt.Fprintln(a.stdout, t.Render()); err != nil {
			return err
		}
	}
	if len(dead) > 0 {
		t := newTable()
		t.AppendHeader(table.Row{"DEAD FROM", "TO", "ID", "TRIES", "AGO", "BYTES", "REASON"})
		t.SetColumnConfigs(right("ID", "TRIES", "AGO", "BYTES"))
		for _, d := range dead {
			m := d.Message
			t.AppendRow(table.Row{m.From, m.To, m.ID, d.Attempts, age(now.Sub(d.Parked)), len(m.Data), printable(d.Reason)})
		}
		if _, err := fmt.Fprintln(a.stdout, t.Render()); err != nil {
			return err
		}
	}
	a.note("%s waiting, %s in %s/%s", plural(waiting, "message"), plural(len(dead), "dead letter"), a.opts.cluster, a.opts.env)
	return nil
}
