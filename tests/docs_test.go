package tests

import (
	"bytes"
	"context"
	"go/format"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// root is the module's directory, seen from this package's.
const root = ".."

// programLimit bounds the README's program: its lines that are neither blank nor
// in the import block.
const programLimit = 25

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A block is one fenced block of a document.
type block struct{ lang, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

func blocks(doc string) (all []block) {
	for _, m := range fence.FindAllStringSubmatch(doc, -1) {
		all = append(all, block{m[1], m[2]})
	}
	return all
}

// documents returns the paths of all documents, relative to the root.
func documents(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".git") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			rel, err := filepath.Rel(root, path)
			paths = append(paths, rel)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestReadmeProgram runs the README's program and compares what it prints with the
// block that follows.
func TestReadmeProgram(t *testing.T) {
	t.Parallel()
	all := blocks(read(t, "README.md"))
	i := slices.IndexFunc(all, func(b block) bool { return strings.HasPrefix(b.text, "package main\n") })
	if i < 0 || i+1 == len(all) || all[i+1].lang != "text" {
		t.Fatal("README.md has no program with its output in a text block after it")
	}
	source := all[i].text
	formatted, err := format.Source([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	if string(formatted) != source {
		t.Error("the program is not in gofmt's form")
	}
	imports := regexp.MustCompile(`(?s)import \(.*?\n\)\n`).ReplaceAllString(source, "")
	if n := len(regexp.MustCompile(`(?m)^.*\S`).FindAllString(imports, -1)); n > programLimit {
		t.Errorf("the program has %d lines beside its imports, want at most %d", n, programLimit)
	}
	path := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "go", "run", path); got != all[i+1].text {
		t.Errorf("the program printed\n%s\nwant\n%s", got, all[i+1].text)
	}
}

// run runs a command in the module's directory and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, problems.String(), out.String())
	}
	return out.String()
}

// commandLines returns the shell commands in a document's sh and console blocks.
func commandLines(doc string) (lines []string) {
	for _, b := range blocks(doc) {
		for line := range strings.Lines(b.text) {
			line = strings.TrimSpace(line)
			if b.lang == "console" {
				var ok bool
				if line, ok = strings.CutPrefix(line, "$ "); !ok {
					continue
				}
			} else if b.lang != "sh" {
				break
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// TestCommandsExist checks that every use of fabric-node in a document names a
// command and flags that the program's help knows.
func TestCommandsExist(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "fabric-node")
	run(t, "go", "build", "-o", bin, "./cmd/fabric-node")
	help := map[string]string{}
	checked := 0
	for _, path := range documents(t) {
		for _, line := range commandLines(read(t, path)) {
			line, _, _ = strings.Cut(line, " #")
			line, _, _ = strings.Cut(line, " -- ")
			words := strings.Fields(line)
			i := slices.IndexFunc(words, func(w string) bool { return w == "fabric-node" || w == "./cmd/fabric-node" })
			if i < 0 || i+1 == len(words) || words[0] == "go" && words[1] != "run" {
				continue
			}
			verb := words[i+1]
			if _, ok := help[verb]; !ok {
				help[verb] = run(t, bin, "help", verb)
			}
			if i+2 < len(words) && strings.Contains(help[verb], "\n  "+words[i+2]+" ") { // a command of its own
				sub := verb + " " + words[i+2]
				help[sub] = run(t, bin, "help", verb, words[i+2])
				verb = sub
				i++
			}
			if !strings.Contains(help[verb], "fabric-node "+verb) && verb != "help" {
				t.Errorf("%s: %q: no such command", path, line)
			}
			for _, w := range words[i+2:] {
				flag, _, _ := strings.Cut(w, "=")
				if strings.HasPrefix(flag, "-") && flag != "-" && !knows(help[verb], flag) {
					t.Errorf("%s: %q: %s has no flag %s", path, line, verb, flag)
				}
			}
			checked++
		}
	}
	if checked < 8 {
		t.Errorf("%d commands found in the documents; are they still looked for where they are?", checked)
	}
}

// knows reports whether a help text lists a flag.
func knows(help, flag string) bool {
	return regexp.MustCompile(`(?m)^ +(-\w, )?` + regexp.QuoteMeta(flag) + `[ ,\n]`).MatchString(help)
}

// TestPins checks that the tools' versions are the same wherever they are named.
func TestPins(t *testing.T) {
	pin := regexp.MustCompile(`(honnef\.co/go/tools/cmd/staticcheck|golang\.org/x/vuln/cmd/govulncheck)@(\S+?)[\s"'` + "`" + `]`)
	want := map[string]string{}
	for _, path := range []string{"CONTRIBUTING.md", ".github/workflows/ci.yml"} {
		found := map[string]string{}
		for _, m := range pin.FindAllStringSubmatch(read(t, path), -1) {
			found[m[1]] = m[2]
		}
		if len(found) != 2 {
			t.Errorf("%s pins %v, want staticcheck and govulncheck", path, found)
		}
		for tool, version := range found {
			if !strings.HasPrefix(version, "v") || want[tool] != "" && want[tool] != version {
				t.Errorf("%s pins %s at %s, CONTRIBUTING.md at %s", path, tool, version, want[tool])
			}
			want[tool] = version
		}
	}
}

// TestLinks checks that what documents link to is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	for _, path := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, path), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	}
}

// TestFileMap checks that every file and directory named in code quotes in DESIGN.md
// exists, and that its map names every package.
func TestFileMap(t *testing.T) {
	design := read(t, "docs/DESIGN.md")
	named := regexp.MustCompile("`((?:[\\w.-]+/)*[\\w.-]+(?:/|\\.(?:go|md|yml|txtar)))`")
	for _, m := range named.FindAllStringSubmatch(design, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Errorf("docs/DESIGN.md names %s: %v", m[1], err)
		}
	}
	_, files, ok := strings.Cut(design, "\n## File map\n")
	files, _, ok2 := strings.Cut(files, "\n## ")
	if !ok || !ok2 {
		t.Fatal("docs/DESIGN.md has no section \"File map\"")
	}
	const module = "github.com/natsfabric/natsfabric/"
	for pkg := range strings.Lines(run(t, "go", "list", "./...")) {
		dir := strings.TrimPrefix(strings.TrimSpace(pkg), module)
		if !strings.Contains(files, "`"+dir+"/") {
			t.Errorf("docs/DESIGN.md's file map does not name the package %s", dir)
		}
	}
}

// TestDecisions checks the form of the decision records, and that DESIGN.md links to
// each.
func TestDecisions(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, "docs", "adr", "*.md"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no decision records: ", err)
	}
	design := read(t, "docs/DESIGN.md")
	for _, path := range paths {
		name := filepath.Base(path)
		text := read(t, filepath.Join("docs", "adr", name))
		rest := text
		for _, heading := range []string{"# ADR " + name[:4] + ": ", "\n## Context\n", "\n## Decision\n", "\n## Consequences\n"} {
			var ok bool
			if _, rest, ok = strings.Cut(rest, heading); !ok {
				t.Errorf("%s has no %q in its place", name, strings.TrimSpace(heading))
			}
		}
		if n := strings.Count(text, "\n"); n > 60 {
			t.Errorf("%s has %d lines, want a page: at most 60", name, n)
		}
		if !strings.Contains(design, "(adr/"+name+")") {
			t.Errorf("docs/DESIGN.md does not link to %s", name)
		}
	}
}

// TestLengths keeps what is read first short.
func TestLengths(t *testing.T) {
	for path, limit := range map[string]int{"README.md": 220, "CONTRIBUTING.md": 80} {
		if n := strings.Count(read(t, path), "\n"); n > limit {
			t.Errorf("%s has %d lines, want at most %d", path, n, limit)
		}
	}
}

// TestGuaranteesAreTested checks that every test which the documents name exists.
func TestGuaranteesAreTested(t *testing.T) {
	name := regexp.MustCompile("`(Test[A-Z]\\w+)`")
	all := run(t, "go", "list", "-f", "{{$d := .Dir}}{{range .TestGoFiles}}{{$d}}/{{.}}\n{{end}}{{range .XTestGoFiles}}{{$d}}/{{.}}\n{{end}}", "./...")
	var text strings.Builder
	for file := range strings.Lines(all) {
		if file = strings.TrimSpace(file); file != "" {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(b)
		}
	}
	for document, least := range map[string]int{"README.md": 10, "docs/ELECTION.md": 40} {
		names := name.FindAllStringSubmatch(read(t, document), -1)
		if len(names) < least {
			t.Errorf("%s names %d tests", document, len(names))
		}
		for _, m := range names {
			if !strings.Contains(text.String(), "func "+m[1]+"(t *testing.T)") {
				t.Errorf("%s names %s, which does not exist", document, m[1])
			}
		}
	}
}
