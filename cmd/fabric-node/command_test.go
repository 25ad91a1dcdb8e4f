package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
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
//	gone FILE                 waits until the process whose pid is in FILE is gone
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"code": codeCommand, "start": startCommand, "signal": signalCommand, "exits": exitsCommand,
	"until": untilCommand, "freeport": freeportCommand, "gone": goneCommand,
}

type processesKey struct{}

// processes are the running processes of one script.
type processes map[string]*exec.Cmd

func scriptSetup(env *testscript.Env) error {
	running := processes{}
	env.Values[processesKey{}] = running
	env.Defer(func() {
		for _, cmd := range running {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return nil
}

func want(ts *testscript.TestScript, neg bool, args []string, low int, usage string) {
	if neg || len(args) < low {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptProcess(ts *testscript.TestScript, argv []string, out, errs string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	if path, err := exec.LookPath(argv[0]); err == nil {
		cmd.Path = path
	}
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
	return cmd
}

func codeCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "code N PROGRAM [ARG]...")
	cmd := scriptProcess(ts, args[1:], "out", "err")
	ts.Check(cmd.Start())
	checkExit(ts, cmd, strings.Join(args[1:], " "), args[0])
}

func checkExit(ts *testscript.TestScript, cmd *exec.Cmd, what, code string) {
	timer := time.AfterFunc(scriptDeadline, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		ts.Fatalf("%s did not end within %v", what, scriptDeadline)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		ts.Fatalf("%s: %v", what, err)
	}
	got := cmd.ProcessState.ExitCode()
	if st := cmd.ProcessState.Sys().(syscall.WaitStatus); st.Signaled() {
		got = 128 + int(st.Signal())
	}
	if strconv.Itoa(got) != code {
		for _, file := range []*os.File{cmd.Stdout.(*os.File), cmd.Stderr.(*os.File)} {
			text, _ := os.ReadFile(file.Name())
			ts.Logf("[%s]\n%s", file.Name(), text)
		}
		ts.Fatalf("%s: exit code %d, want %s", what, got, code)
	}
}

func startCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "start NAME PROGRAM [ARG]...")
	running := ts.Value(processesKey{}).(processes)
	if running[args[0]] != nil {
		ts.Fatalf("%s is running", args[0])
	}
	cmd := scriptProcess(ts, args[1:], args[0]+".out", args[0]+".err")
	ts.Check(cmd.Start())
	running[args[0]] = cmd
}

func find(ts *testscript.TestScript, name string) *exec.Cmd {
	cmd := ts.Value(processesKey{}).(processes)[name]
	if cmd == nil {
		ts.Fatalf("%s is not running", name)
	}
	return cmd
}

func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "signal NAME SIGNAL")
	signals := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	}
	sig, ok := signals[args[1]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[1])
	}
	ts.Check(find(ts, args[0]).Process.Signal(sig))
}

func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "exits NAME N")
	cmd := find(ts, args[0])
	checkExit(ts, cmd, args[0], args[1])
	delete(ts.Value(processesKey{}).(processes), args[0])
}

// poll waits until done; files and processes of others tell nobody.
func poll(ts *testscript.TestScript, what string, done func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(scriptDeadline)
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			ts.Fatalf("%s: not within %v", what, scriptDeadline)
		}
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
	var text []byte
	defer func() {
		if len(re.FindAll(text, -1)) < count {
			ts.Logf("[%s]\n%s", args[0], text)
		}
	}()
	poll(ts, strings.Join(args, " "), func() bool {
		text, _ = os.ReadFile(ts.MkAbs(args[0]))
		return len(re.FindAll(text, count)) == count
	})
}

func freeportCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "freeport VAR")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

func goneCommand(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "gone FILE")
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	poll(ts, "gone "+args[0], func() bool { return !running(pid) })
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
