package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/natsfabric/natsfabric"

// A rule says what a package, and everything it depends on, may not import. The
// names of our own packages are relative to the module; "ours" is the whole module,
// "third" everything that is neither ours nor the standard library.
type rule struct {
	pkg       string
	forbidden []string
	except    []string
	why       string
}

const (
	natsServer = "github.com/nats-io/nats-server/v2"
	library    = "a client-only binary is a third of one with a server, and a fault of one is its own"
	arrows     = "the arrows of docs/DESIGN.md point one way"
	adapter    = "an adapter stands on a node and nothing else: " + arrows
)

// client is what a library may import of third parties: nats.go, nuid, and what
// nats.go itself needs.
var client = []string{
	"github.com/nats-io/nats.go", "github.com/nats-io/nuid", "github.com/nats-io/nkeys",
	"github.com/klauspost/compress", "golang.org/x/crypto", "golang.org/x/sys", "golang.org/x/text",
}

var rules = []rule{
	{"internal/token", []string{"ours", "third"}, nil, "it is one function about names"},
	{"internal/latest", []string{"ours", "third"}, nil, "it is one value"},
	{"internal/beat", []string{"ours", "third"}, nil, "it is one function of the time"},
	{"internal/window", []string{"ours", "third"}, nil, "it does no I/O"},
	{"internal/kv", []string{"ours", "third"}, append([]string{"internal/token", "internal/latest"}, client...), arrows},
	{"internal/lease", []string{"ours", "third"}, append([]string{"internal/kv", "internal/token", "internal/latest", "internal/beat"}, client...), arrows},
	{"internal/roster", []string{"ours", "third"}, append([]string{"internal/lease", "internal/kv", "internal/token", "internal/latest", "internal/beat"}, client...), arrows},
	{"internal/mail", []string{"ours", "third"}, append([]string{"internal/kv", "internal/latest"}, client...), arrows},
	{"fabric", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, arrows},
	{"fabric", []string{"third"}, client, library},
	{"fabric/typed", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/typed", []string{"third"}, client, library},
	{"fabric/typed/protobuf", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/typed/protobuf", []string{"third"}, append([]string{"google.golang.org/protobuf"}, client...), "it is there for one dependency"},
	{"fabric/middleware", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/middleware", []string{"third"}, client, library},
	{"fabric/classic/internal/channel", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/classic/internal/channel", []string{"third"}, client, library},
	{"fabric/classic/clustertalk", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/classic/clustertalk", []string{"third"}, client, library},
	{"fabric/classic/raft", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/classic/raft", []string{"third"}, client, library},
	{"fabric/classic/cluster", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/classic/cluster", []string{"third"}, client, library},
	{"fabric/otelfabric", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, adapter},
	{"fabric/otelfabric", []string{"third"}, append([]string{"go.opentelemetry.io", "github.com/go-logr", "github.com/cespare/xxhash/v2"}, client...),
		"it is there for one dependency"},
	{"fabric/otelfabric", []string{"go.opentelemetry.io/otel/sdk"}, nil, "programs choose their SDK"},
	{"election", []string{"balance", "embedded", "cmd", "internal/natstest"}, nil, "an election needs no group: " + arrows},
	{"election", []string{"third"}, client, library},
	{"election/fence", []string{"ours", "third"}, nil, "who owns a resource need not speak NATS"},
	{"balance", []string{"election", "embedded", "cmd", "internal/natstest"}, nil, "a group needs no leader that the user sees: " + arrows},
	{"balance", []string{"third"}, client, library},
	{"embedded", []string{"ours"}, nil, "the fabric cannot tell an embedded server from another"},
	{"internal/permission", []string{"balance", "election", "embedded", "cmd", "internal/natstest"}, nil, "it writes down what fabric says"},
	{"internal/permission", []string{"third"}, client, library},
	{"internal/natstest", []string{"fabric", "election", "balance", "embedded", "cmd", "internal/kv", "internal/lease", "internal/roster", "internal/mail"}, nil, "everyone's tests use it"},
	{"cmd/fabric-node", []string{"internal/natstest"}, nil, "a program is not a test"},
}

// matches reports whether the import path imp is what name means.
func matches(imp, name string) bool {
	ours := imp == module || strings.HasPrefix(imp, module+"/")
	switch name {
	case "ours":
		return ours
	case "third":
		first, _, _ := strings.Cut(imp, "/")
		return !ours && strings.Contains(first, ".")
	}
	if !strings.Contains(name, ".") {
		name = module + "/" + name
	}
	return imp == name || strings.HasPrefix(imp, name+"/")
}

// check returns what rules, given what every package depends on, are broken.
func check(rules []rule, deps map[string][]string) (broken []error) {
	for _, r := range rules {
		all, ok := deps[module+"/"+r.pkg]
		if !ok {
			broken = append(broken, fmt.Errorf("there is no package %s: the rule is dead", r.pkg))
		}
		for _, imp := range all {
			is := func(name string) bool { return matches(imp, name) }
			if slices.ContainsFunc(r.forbidden, is) && !slices.ContainsFunc(r.except, is) {
				broken = append(broken, fmt.Errorf("%s depends on %s: %s", r.pkg, imp, r.why))
			}
		}
	}
	return broken
}

type pkg struct {
	ImportPath string
	Dir        string
	Module     *struct{ Path string }
	Deps       []string
	Standard   bool
}

// list returns the packages of the module.
func list(t *testing.T) (ours []pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Module,Deps,Standard", "./...")
	cmd.Dir = root
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return ours
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && p.Module.Path == module {
			ours = append(ours, p)
		}
	}
}

func TestImports(t *testing.T) {
	deps := map[string][]string{}
	for _, p := range list(t) {
		// Of standard packages' own third parties ("vendor/golang.org/...") nobody minds.
		deps[p.ImportPath] = slices.DeleteFunc(p.Deps, func(d string) bool { return strings.HasPrefix(d, "vendor/") })
		if slices.Contains(p.Deps, "testing") && p.ImportPath != module+"/internal/natstest" {
			t.Errorf("%s depends on testing, which belongs in tests and in internal/natstest", p.ImportPath)
		}
		known := func(r rule) bool { return module+"/"+r.pkg == p.ImportPath }
		if p.ImportPath != module+"/tests" && !slices.ContainsFunc(rules, known) {
			t.Errorf("no rule says what %s may import", p.ImportPath)
		}
	}
	for _, err := range check(rules, deps) {
		t.Error(err)
	}
}

// Every rule is broken by a package that breaks it, or it would hold nothing.
func TestImportsAreChecked(t *testing.T) {
	for _, r := range rules {
		for _, name := range r.forbidden {
			imp := name
			switch {
			case name == "ours":
				imp = module + "/cmd/fabric-node"
			case name == "third":
				imp = natsServer + "/server"
			case !strings.Contains(name, "."):
				imp = module + "/" + name
			}
			deps := map[string][]string{module + "/" + r.pkg: {"context", imp}}
			if got := check([]rule{r}, deps); len(got) != 1 {
				t.Errorf("%s may depend on %s: %v", r.pkg, imp, got)
			}
		}
		for _, name := range r.except {
			imp := name
			if !strings.Contains(name, ".") {
				imp = module + "/" + name
			}
			if got := check([]rule{r}, map[string][]string{module + "/" + r.pkg: {imp}}); len(got) != 0 {
				t.Errorf("%s may not depend on %s: %v", r.pkg, imp, got)
			}
		}
	}
	if got := check([]rule{{pkg: "nowhere"}}, nil); len(got) != 1 {
		t.Errorf("a rule about no package is not found: %v", got)
	}
}

// A goFile is one file of the module.
type goFile struct {
	name  string // relative to the module's directory
	lines int
	ast   *ast.File
}

func (f goFile) test() bool  { return strings.HasSuffix(f.name, "_test.go") }
func (f goFile) dir() string { return filepath.ToSlash(filepath.Dir(f.name)) }

// parse parses one file.
func parse(name string, src []byte) (goFile, error) {
	a, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments)
	return goFile{name, bytes.Count(src, []byte("\n")), a}, err
}

// goFiles returns every Go file of the module.
func goFiles(t *testing.T) (files []goFile) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(name), src)
		files = append(files, f)
		return err
	})
	if err != nil || len(files) < 50 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	return files
}

const maxLines = 500

var vague = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "interfaces"}

// homes says in which file a literal may begin with a prefix, outside of tests.
var homes = []struct{ prefix, file, why string }{
	{"fab.", "fabric/subject.go", "subjects are decided in one place"},
	{"fab_", "internal/kv/subject.go", "the bucket's name is decided in one place"},
	{"$KV.", "internal/kv/", "the bucket's subjects are decided in one package"},
	{"$JS.", "internal/kv/", "JetStream's API is used in one package"},
}

// checkFile returns what is wrong with a file.
func checkFile(f goFile) (wrong []error) {
	if f.lines > maxLines {
		wrong = append(wrong, fmt.Errorf("%s has %d lines, at most %d are allowed", f.name, f.lines, maxLines))
	}
	base := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(f.name), ".go"), "_test")
	for _, name := range []string{base, filepath.Base(f.dir()), f.ast.Name.Name} {
		if slices.Contains(vague, name) {
			wrong = append(wrong, fmt.Errorf("%s: %q says nothing about what is in it", f.name, name))
		}
	}
	for _, i := range f.ast.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			wrong = append(wrong, err)
		}
		if path == "testing" && !f.test() && f.dir() != "internal/natstest" {
			wrong = append(wrong, fmt.Errorf("%s imports testing", f.name))
		}
	}
	if f.test() || f.dir() == "internal/natstest" {
		return wrong
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			wrong = append(wrong, err)
		}
		for _, h := range homes {
			if strings.HasPrefix(text, h.prefix) && !strings.HasPrefix(f.name, h.file) {
				wrong = append(wrong, fmt.Errorf("%s: literal %q belongs in %s: %s", f.name, text, h.file, h.why))
			}
		}
		return true
	})
	return wrong
}

func TestFiles(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, err := range checkFile(f) {
			t.Error(err)
		}
	}
}

func TestFilesAreChecked(t *testing.T) {
	for _, c := range []struct {
		name, src string
		wrong     int
	}{
		{"fabric/node.go", "package fabric\n", 0},
		{"fabric/node.go", "package fabric\n" + strings.Repeat("\n", maxLines), 1},
		{"fabric/helpers.go", "package fabric\n", 1},
		{"fabric/helpers_test.go", "package fabric\n", 1},
		{"internal/util/x.go", "package util\n", 2},
		{"fabric/node.go", "package fabric\nimport _ \"testing\"\n", 1},
		{"fabric/node_test.go", "package fabric\nimport _ \"testing\"\n", 0},
		{"fabric/node.go", "package fabric\nconst s = \"fab.x\"\n", 1},
		{"fabric/subject.go", "package fabric\nconst s = \"fab.x\"\n", 0},
		{"internal/kv/open.go", "package kv\nconst s = \"fab_x\"\n", 1},
		{"fabric/send.go", "package fabric\nconst s = `$KV.x`\n", 1},
	} {
		f, err := parse(c.name, []byte(c.src))
		if err != nil {
			t.Fatal(err)
		}
		if got := checkFile(f); len(got) != c.wrong {
			t.Errorf("%s: found %v, want %d", c.name, got, c.wrong)
		}
	}
}

// comments counts the package comments of each directory. Test packages (x_test)
// need none.
func comments(files []goFile) map[string]int {
	n := map[string]int{}
	for _, f := range files {
		if strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		n[f.dir()] += 0
		if f.ast.Doc != nil {
			n[f.dir()]++
		}
	}
	return n
}

func TestPackageComments(t *testing.T) {
	for dir, n := range comments(goFiles(t)) {
		if n != 1 {
			t.Errorf("%s has %d package comments, want 1", dir, n)
		}
	}
	a, err := parse("a/a.go", []byte("// Package a.\npackage a\n"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := parse("b/b.go", []byte("package b\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := comments([]goFile{a, a, b}); got["a"] != 2 || got["b"] != 0 {
		t.Errorf("counted %v", got)
	}
}

// constructors are the exported functions that make something a user must end, or
// that begin with New, and their examples.
func constructors(files []goFile) (made map[string]bool) {
	made = map[string]bool{}
	examples := map[string]bool{}
	for _, f := range files {
		if strings.HasPrefix(f.dir(), "internal/") || strings.Contains(f.dir(), "/internal/") || strings.HasPrefix(f.dir(), "cmd/") || f.dir() == "tests" {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil {
				continue
			}
			name := fn.Name.Name
			switch {
			case f.test() && strings.HasPrefix(name, "Example"):
				if hasOutput(f.ast, fn) {
					ast.Inspect(fn, func(n ast.Node) bool {
						if s, ok := n.(*ast.SelectorExpr); ok {
							if x, ok := s.X.(*ast.Ident); ok {
								examples[imported(f.ast, x.Name)+"."+s.Sel.Name] = true
							}
						}
						return true
					})
				}
			case !f.test() && (name == "Join" || name == "Start" || name == "Static" || strings.HasPrefix(name, "New")):
				made[filepath.Base(f.dir())+"."+name] = false
			}
		}
	}
	for name := range made {
		made[name] = examples[name]
	}
	return made
}

// imported returns the last element of the path that is imported as name, or name.
func imported(f *ast.File, name string) string {
	for _, i := range f.Imports {
		if i.Name != nil && i.Name.Name == name {
			path, err := strconv.Unquote(i.Path.Value)
			if err == nil {
				return path[strings.LastIndexByte(path, '/')+1:]
			}
		}
	}
	return name
}

// hasOutput reports whether the example ends with a comment that makes it run.
func hasOutput(f *ast.File, fn *ast.FuncDecl) bool {
	for _, c := range f.Comments {
		if c.Pos() > fn.Body.Pos() && c.End() < fn.Body.End() && strings.Contains(c.Text(), "utput:") {
			return true
		}
	}
	return false
}

func TestConstructorsHaveExamples(t *testing.T) {
	made := constructors(goFiles(t))
	for name, ok := range made {
		if !ok {
			t.Errorf("%s has no example with an output", name)
		}
	}
	if len(made) < 5 {
		t.Errorf("found the constructors %v, want fabric.Join and others", made)
	}
	a, err := parse("a/a.go", []byte("package a\nfunc Join() {}\nfunc New() {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := parse("a/x_test.go", []byte("package a_test\nfunc Example() { a.Join()\n// Output: x\n}\nfunc Example_not() { a.New() }\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := constructors([]goFile{a, e}); !got["a.Join"] || got["a.New"] {
		t.Errorf("found %v, want an example of a.Join only", got)
	}
	e, err = parse("a/y_test.go", []byte("package a_test\nimport b \"x/a\"\nimport a \"x/c\"\nfunc Example() { b.New(); a.Join()\n// Output: x\n}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := constructors([]goFile{a, e}); !got["a.New"] || got["a.Join"] {
		t.Errorf("found %v, want an example of a.New, under another name, only", got)
	}
}
