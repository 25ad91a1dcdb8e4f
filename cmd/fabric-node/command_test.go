//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// scriptDeadline bounds every wait in a script.
const scriptDeadline = 30 * time.Second

// scriptCommands are what the scripts need beyond testscript's own:
//
//	code N PROGRAM [ARG]...   runs it, wants exit code N; its output is in files out and err
//	start NAME PROGRAM [ARG]... starts it; its output goes to files NAME.out and NAME.err
//	signal NAME SIGNAL        sends it a signal
//	exits NAME N              waits for its end, wants exit code N
//	until FILE REGEXP [N]     waits until the file has N matches, 1 if not given
//	freeport VAR              sets VAR to a port nobody listens on
//	loginof FILE VAR          sets VAR to the context that a server's "ready" names
//	gone FILE                 waits until the process whose pid is in FILE is gone
//	watches NAME OTHER        waits until the one would see the end of the other; Linux only
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"code": codeCommand, "start": startCommand, "signal": signalCommand, "exits": exitsCommand,
	"until": untilCommand, "freeport": freeportCommand, "gone": goneCommand,
	"loginof": loginofCommand, "watches": watchesCommand,
}

type processesKey struct{}

// A scriptProcess is a program that a script started.
type scriptProcess struct {
	*exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

// processes are the programs that a script has started and not yet seen the end of.
type processes map[string]*scriptProcess

func scriptSetup(env *testscript.Env) error {
	running := processes{}
	env.Values[processesKey{}] = running
	env.Setenv("HOME", env.WorkDir) // where a server leaves its login
	env.Defer(func() {
		for _, p := range running {
			p.Process.Kill()
			<-p.done
		}
	})
	return nil
}

func want(ts *testscript.TestScript, neg bool, args []string, low int, usage string) {
	if neg || len(args) < low {
		ts.Fatalf("usage: %s", usage)
	}
}

// launch starts argv with its output in two files of the script's directory.
func launch(ts *testscript.TestScript, argv []string, out, errs string) *scriptProcess {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "WORK", "XDG_CONFIG_HOME"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	for _, tw := range twins {
		cmd.Env = append(cmd.Env, tw.env+"="+ts.Getenv(tw.env))
	}
	cmd.Env = slices.DeleteFunc(cmd.Env, func(s string) bool { return strings.HasSuffix(s, "=") })
	create := func(path string) *os.File {
		file, err := os.Create(ts.MkAbs(path))
		ts.Check(err)
		ts.Defer(func() { file.Close() })
		return file
	}
	cmd.Stdout, cmd.Stderr = create(out), create(errs)
	ts.Check(cmd.Start())
	p := &scriptProcess{Cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// show logs what the process printed, before the script fails.
func (p *scriptProcess) show(ts *testscript.TestScript) {
	for _, file := range []*os.File{p.Stdout.(*os.File), p.Stderr.(*os.File)} {
		text, _ := os.ReadFile(file.Name())
		ts.Logf("[%s]\n%s", file.Name(), text)
	}
}

// wants waits for the end, and checks the exit code as a shell would show it.
func (p *scriptProcess) wants(ts *testscript.TestScript, what, code string) {
	select {
	case <-p.done:
	case <-time.After(scriptDeadline):
		p.show(ts)
		p.Process.Kill()
		<-p.done
		ts.Fatalf("%s did not end within %v", what, scriptDeadline)
	}
	got, _ := exitStatus(p.Cmd, p.err)
	if strconv.Itoa(got) != code {
		p.show(ts)
		ts.Fatalf("%s: exit code %d, want %s", what, got, code)
	}
}

func codeCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "code N PROGRAM [ARG]...")
	launch(ts, args[1:], "out", "err").wants(ts, strings.Join(args[1:], " "), args[0])
}

func startCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "start NAME PROGRAM [ARG]...")
	running := ts.Value(processesKey{}).(processes)
	if running[args[0]] != nil {
		ts.Fatalf("%s is running", args[0])
	}
	running[args[0]] = launch(ts, args[1:], args[0]+".out", args[0]+".err")
}

func find(ts *testscript.TestScript, name string) *scriptProcess {
	p := ts.Value(processesKey{}).(processes)[name]
	if p == nil {
		ts.Fatalf("%s is not running", name)
	}
	return p
}

func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "signal NAME SIGNAL")
	signals := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP,
		"HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "CONT": syscall.SIGCONT,
	}
	sig, ok := signals[args[1]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[1])
	}
	ts.Check(find(ts, args[0]).Process.Signal(sig))
}

func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "exits NAME N")
	find(ts, args[0]).wants(ts, args[0], args[1])
	delete(ts.Value(processesKey{}).(processes), args[0])
}

// poll waits until done: files, and processes of others, tell nobody. It waits no
// longer than writer lives, if there is one.
func poll(ts *testscript.TestScript, what string, writer *scriptProcess, done func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(scriptDeadline)
	defer limit.Stop()
	var ended chan struct{}
	if writer != nil {
		ended = writer.done
	}
	for !done() {
		select {
		case <-tick.C:
			continue
		case <-ended:
			if done() {
				return
			}
		case <-limit.C:
		}
		if writer != nil {
			writer.show(ts)
		}
		ts.Fatalf("%s: not within %v, or the life of its writer", what, scriptDeadline)
	}
}

func untilCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "until FILE REGEXP [N]")
	count := 1
	if len(args) > 2 {
		var err error
		count, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	matches := func() bool {
		text, _ := os.ReadFile(ts.MkAbs(args[0])) // it may not exist yet
		return len(re.FindAll(text, count)) == count
	}
	name, _, _ := strings.Cut(args[0], ".")
	writer := ts.Value(processesKey{}).(processes)[name]
	poll(ts, strings.Join(args, " "), writer, matches)
}

func freeportCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "freeport VAR")
	port, err := natstest.FreePort()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(port))
}

func loginofCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "loginof FILE VAR")
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var e serverEvent
		if json.Unmarshal([]byte(line), &e) == nil && e.Context != "" {
			ts.Setenv(args[1], e.Context)
			return
		}
	}
	ts.Fatalf("%s names no context", args[0])
}

func goneCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "gone FILE")
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	poll(ts, "gone "+args[0], nil, func() bool { return !running(pid) })
}

func watchesCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "watches NAME OTHER")
	watcher := find(ts, args[0])
	open := "/proc/" + strconv.Itoa(watcher.Process.Pid) + "/fdinfo/"
	pidfd := "\nPid:\t" + strconv.Itoa(find(ts, args[1]).Process.Pid) + "\n"
	poll(ts, "watches "+strings.Join(args, " "), watcher, func() bool {
		files, err := os.ReadDir(open)
		ts.Check(err)
		return slices.ContainsFunc(files, func(f os.DirEntry) bool {
			info, _ := os.ReadFile(open + f.Name()) // it may be closed by now
			return strings.Contains(string(info), pidfd)
		})
	})
}

// running reports whether pid is a process that does something: one that has ended
// and that nobody waits for, in a container without a proper process 1, does not.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || syscall.Kill(pid, 0) == nil
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}
