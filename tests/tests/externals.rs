//! What reaches outside of the process: attached where told, reset where told, else refused by name.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use pc_tests::python::{image_of, python, refused, second_part_is_right, started, text};
use pc_tests::{
    Folder, Guest, adopt_orphans, descriptors, program, restored, run, said, sleeper, status, wait_for,
};

const CONNECTION: &str = "listener = socket.create_server(('127.0.0.1', 0))\n\
                          a = socket.create_connection(listener.getsockname())\n\
                          b, _ = listener.accept()\n\
                          listener.close()";

#[test]
fn a_tcp_connection_is_refused_by_name_or_at_its_end_in_the_copy() {
    let folder = Folder::new();
    let second = "for s in (a, b):\n    assert s.recv(10) == b''\n    try:\n        s.send(b'x')\n        raise SystemExit('sent')\n    except BrokenPipeError:\n        pass";
    let guest = started(&folder, &mut python(&folder, CONNECTION, second));
    for args in [&["--once", "--check"][..], &["--once"]] {
        let output = run("pc-dump", &[args, &[&guest.arg()]].concat());
        let text = said(&output);
        let named =
            text.contains("descriptor 4") && text.contains("127.0.0.1") && text.contains("--tcp-close");
        assert!(output.status.code() == Some(6) && named, "{text}");
    }
    let image = image_of(&folder, guest, &["--tcp-close"]);
    second_part_is_right(&folder, restored(&image, &[]));
}

/// The listener never had SO_REUSEADDR, and what is left of its connection (TIME-WAIT) has its address.
#[test]
fn a_listener_has_its_address_again_a_moment_after_connections_of_its_original_ended() {
    let folder = Folder::new();
    let port = folder.file("port");
    let first = format!(
        "listener = socket.socket()\nlistener.bind(('127.0.0.1', 0))\nlistener.listen()\n\
         open({port:?}, 'w').write(str(listener.getsockname()[1]))\na, _ = listener.accept()"
    );
    let second = "assert a.recv(1) == b''\nassert listener.getsockopt(1, 2) == 0\n\
                  b, _ = listener.accept()\nassert b.recv(1) == b'x'";
    let connecting = std::thread::spawn(move || {
        let listens = || text(&port).parse::<u16>().ok();
        wait_for("the guest listens", Duration::from_secs(40), || listens().is_some());
        let port = listens().expect("a port");
        (port, TcpStream::connect(("127.0.0.1", port)).expect("a connection"))
    });
    let mut guest = started(&folder, &mut python(&folder, &first, second));
    let (port, mut client) = connecting.join().expect("a client");
    let image = folder.file("image");
    let mut dump = Command::new(program("pc-dump"));
    let dump =
        dump.args(["--tcp-close", "--kill", &guest.arg()]).stdout(File::create(&image).expect("an image"));
    let output = dump.output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", said(&output));
    guest.ended(Duration::from_secs(10));
    assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    drop(client);
    let left = format!("0100007F:{port:04X} ");
    let is_left = |line: &str| line.contains(&left) && line.contains(" 06 ");
    wait_for("TIME-WAIT", Duration::from_secs(5), || text(Path::new("/proc/net/tcp")).lines().any(is_left));
    let copy = restored(&image, &[]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    client.write_all(b"x").expect("written");
    second_part_is_right(&folder, copy);
}

#[test]
fn keys_in_a_session_keyring_are_named_and_one_without_is_no_news() {
    const JOIN: &str = "import ctypes\nc = ctypes.CDLL(None)\nassert c.syscall(250, 1, None) > 0";
    let with_key = format!("{JOIN}\nassert c.syscall(248, b'user', b'mine', b'x', 1, -3) > 0");
    for (first, named) in [(JOIN, false), (&with_key, true)] {
        let folder = Folder::new();
        let guest = started(&folder, &mut python(&folder, first, "pass"));
        let args = ["--leave-running", "--once", &guest.arg()];
        let mut dump = Command::new(program("pc-dump"));
        let output = dump.args(args).stdout(Stdio::piped()).output().expect("pc-dump runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        assert_eq!(text.contains("session keyring has keys") && text.contains("user mine"), named, "{text}");
        assert_eq!(text.contains("keyring"), named, "{text}");
        second_part_is_right(&folder, guest);
    }
}

#[test]
fn what_cannot_be_moved_is_refused_by_name_and_runs_on() {
    let cases = [
        ("a, b = socket.socketpair()\na.send(b'queued')", "connected Unix socket"),
        ("import select, ctypes\nctypes.CDLL(None).inotify_init()", "inotify"),
        ("import fcntl\nf = open(sys.executable)\nfcntl.flock(f, fcntl.LOCK_SH)", "lock"),
        ("f = os.pidfd_open(os.getpid())", "pidfd"),
        (
            "u = socket.socket(1, 2)\nu.bind('\\0pc-to%d' % os.getpid())\nv = socket.socket(1, 2)\nv.bind('\\0pc-from%d' % os.getpid())\nv.sendto(b'x', u.getsockname())",
            "a sender's name",
        ),
        (
            "u = socket.socket(2, 2)\nu.connect(('127.0.0.1', 9))\nu.setsockopt(17, 1, 1)\nu.send(b'x')",
            "holds back a datagram",
        ),
        (
            "u = socket.socket(2, 2)\nu.connect(('127.0.0.1', 9))\nu.send(b'x')\nimport time\ntime.sleep(0.1)",
            "waits to be fetched",
        ),
        ("u = socket.socket(2, 2)\nu.setsockopt(1, 37, 0x98)", "SO_TIMESTAMPING"),
        (
            "u = socket.socket(2, 2)\nu.setsockopt(1, 2, 1)\nu.bind(('127.0.0.1', 0))\nv = socket.socket(2, 2)\nv.setsockopt(1, 2, 1)\nv.bind(u.getsockname())\nu.setsockopt(1, 2, 0)",
            "shares 127.0.0.1",
        ),
        ("n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", "netlink"),
        ("import subprocess\nchild = subprocess.Popen(['sleep', '60'])", "children"),
    ];
    for (first, word) in cases {
        let folder = Folder::new();
        let second = "if 'child' in globals(): child.kill(); child.wait()";
        let guest = started(&folder, &mut python(&folder, first, second));
        let before = pc_tests::traces(guest.pid());
        let output = run("pc-dump", &["--once", &guest.arg()]);
        let text = said(&output);
        assert!(
            output.status.code() == Some(6) && text.contains(word),
            "{word}: {:?}: {text}",
            output.status
        );
        assert_eq!(pc_tests::traces(guest.pid()), before, "{word}");
        second_part_is_right(&folder, guest);
    }
}

#[test]
fn a_traced_process_is_refused_by_name() {
    let mut strace = Command::new("python3");
    let script = "import ctypes, sys, time\n\
                  libc = ctypes.CDLL(None)\n\
                  libc.ptrace.argtypes = [ctypes.c_long] * 4\n\
                  assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0\n\
                  print('seized', flush=True)\n\
                  time.sleep(30)";
    let guest = Guest::start(Command::new("sleep").arg("300"));
    let strace = strace.args(["-c", script, &guest.arg()]).stdout(Stdio::piped());
    let mut tracer = strace.spawn().expect("python3 runs");
    let mut line = [0; 6];
    tracer.stdout.take().expect("a pipe").read_exact(&mut line).expect("it traces");
    let output = run("pc-dump", &["--once", &guest.arg()]);
    let _ = tracer.kill();
    let _ = tracer.wait();
    let text = said(&output);
    assert!(output.status.code() == Some(1) && text.contains("is traced by process"), "{text}");
}

/// A guest whose standard streams are pipes to the test.
fn piped(folder: &Folder) -> (Guest, File, File) {
    let second = "assert sys.stdin.readline() == 'to the copy\\n'\nprint('out of the copy', flush=True)";
    // What another test starts meanwhile must not have them.
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let ((from, to_us), (to_them, to)) = (pipe(), pipe());
    let mut command = python(folder, "", second);
    let guest = started(folder, command.stdin(to_them).stdout(to_us));
    drop(command);
    (guest, from.into(), to.into())
}

#[test]
fn pipes_to_the_outside_become_what_attach_says() {
    let folder = Folder::new();
    let (guest, _from, _to) = piped(&folder);
    let image = image_of(&folder, guest, &[]);
    let (out, input) = (folder.file("out"), folder.file("in"));
    fs::write(&out, "before\n").expect("a file");
    fs::write(&input, "to the copy\n").expect("a file");
    let attach = [format!("pipe:0={}", input.display()), format!("pipe:1={}", out.display())];
    let copy = restored(&image, &["--attach", &attach[0], "--attach", &attach[1]]);
    second_part_is_right(&folder, copy);
    assert_eq!(text(&out), "before\nout of the copy\n", "what is there is appended to");
}

#[test]
fn pipes_to_the_outside_become_descriptors_of_ours() {
    let folder = Folder::new();
    let (guest, _from, _to) = piped(&folder);
    let image = image_of(&folder, guest, &[]);
    let (to_them, to) = nix::unistd::pipe().expect("a pipe");
    File::from(to).write_all(b"to the copy\n").expect("written");
    let (from, to_us) = nix::unistd::pipe().expect("a pipe");
    let attach = [format!("pipe:0=fd:{}", to_them.as_raw_fd()), format!("pipe:1=fd:{}", to_us.as_raw_fd())];
    let copy = restored(&image, &["--attach", &attach[0], "--attach", &attach[1]]);
    drop((to_them, to_us));
    second_part_is_right(&folder, copy);
    let mut got = String::new();
    File::from(from).read_to_string(&mut got).expect("text");
    assert_eq!(got, "out of the copy\n");
}

/// As `program 2>&1 | less`, and with two descriptions of the one pipe.
#[test]
fn only_standard_error_becomes_ours_without_attach_and_standard_output_if_it_is_the_same_pipe() {
    let reopened = "import os\nfd = os.open('/proc/self/fd/1', os.O_WRONLY)\nos.dup2(fd, 1)\nos.close(fd)";
    for (first, said) in [("", "pipe:2 becomes our stderr"), (reopened, "pipe:2:1 becomes our stderr")] {
        becomes_stderr(first, said);
    }
}

fn becomes_stderr(first: &str, expected: &str) {
    let folder = Folder::new();
    let second = "print('out of the copy', flush=True)";
    let (from, to_us) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let mut command = python(&folder, first, second);
    let guest = started(&folder, command.stdout(to_us.try_clone().expect("a duplicate")).stderr(to_us));
    let image = image_of(&folder, guest, &[]);
    drop((command, from));
    adopt_orphans();
    let (said, pidfile) = (folder.file("said"), folder.file("pid"));
    let mut tool = Command::new(program("pc-restore"));
    let tool =
        tool.args(["--detach", "--pidfile"]).arg(&pidfile).stdin(File::open(&image).expect("an image"));
    let ended = tool.stderr(File::create(&said).expect("a file")).status().expect("it runs");
    assert!(ended.success() && text(&said).contains(expected), "{}", text(&said));
    let copy = Guest::adopt(text(&pidfile).trim().parse().expect("a pid"));
    second_part_is_right(&folder, copy);
    assert!(text(&said).ends_with("out of the copy\n"), "{}", text(&said));
}

#[test]
fn a_pipe_to_the_outside_is_refused_with_the_option_to_type_and_check_says_it_before() {
    let folder = Folder::new();
    let (guest, _from, _to) = piped(&folder);
    let checked = run("pc-dump", &["--check", &guest.arg()]);
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{text}");
    assert!(text.contains("--attach pipe:0=WHERE") && text.contains("--attach pipe:1=WHERE"), "{text}");
    let image = image_of(&folder, guest, &[]);
    assert!(refused(&image, &[]).contains("--attach pipe:0=WHERE"));
    let text = refused(&image, &["--attach", "pipe:0=null"]);
    assert!(text.contains("--attach pipe:1=WHERE") && !text.contains("pipe:0"), "{text}");
}

/// `producer | gzip > file`: the copy goes on with the very pipe.
#[test]
fn gzip_in_a_pipeline_comes_out_whole_where_the_pipe_is_attached() {
    const LINES: usize = 400_000;
    let folder = Folder::new();
    let (from, to) = nix::unistd::pipe().expect("a pipe");
    fcntl(&to, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
    let zipped = folder.file("zipped");
    let mut command = Command::new("gzip");
    let end = from.try_clone().expect("a duplicate");
    command.stdin(end).stdout(File::create(&zipped).expect("a file")).stderr(Stdio::null());
    let guest = Guest::start_as_is(&mut command);
    drop(command);
    let mut to = File::from(to);
    let half = |from: usize| (from..from + LINES / 2).map(|n| format!("line {n}\n")).collect::<String>();
    to.write_all(half(0).as_bytes()).expect("taken");
    let image = image_of(&folder, guest, &[]);
    assert!(refused(&image, &[]).contains("--attach pipe:0=WHERE"));
    let mut copy = restored(&image, &["--attach", &format!("pipe:0=fd:{}", from.as_raw_fd())]);
    drop(from);
    to.write_all(half(LINES / 2).as_bytes()).expect("taken by the copy");
    drop(to);
    assert_eq!(copy.ended(Duration::from_secs(60)), Some(0));
    let output = Command::new("gzip").args(["-dc"]).arg(&zipped).output().expect("gzip runs");
    assert!(output.status.success() && output.stdout == (half(0) + &half(LINES / 2)).as_bytes());
}

/// A pipe of which the process has both ends is its own only if nobody else has one.
#[test]
fn a_pipe_with_both_ends_inside_and_one_outside_is_one_to_the_outside() {
    let folder = Folder::new();
    let second = "os.write(fds[1], b'to the outside')";
    let guest = started(&folder, &mut python(&folder, "fds = os.pipe()\nassert fds == (3, 4)", second));
    let own = File::open(format!("/proc/{}/fd/3", guest.pid())).expect("a pipe");
    let image = image_of(&folder, guest, &[]);
    assert!(refused(&image, &[]).contains("--attach pipe:3=WHERE"));
    let attach = [format!("pipe:3=fd:{}", own.as_raw_fd()), format!("pipe:4=fd:{}", own.as_raw_fd())];
    fcntl(&own, FcntlArg::F_SETFD(FdFlag::empty())).expect("a flag");
    let copy = restored(&image, &["--attach", &attach[0], "--attach", &attach[1]]);
    second_part_is_right(&folder, copy);
    let mut got = [0; 14];
    (&own).read_exact(&mut got).expect("bytes");
    assert_eq!(&got, b"to the outside");
}

#[test]
fn a_terminal_becomes_dev_null_where_there_is_none() {
    let folder = Folder::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let second = "assert os.isatty(0) is False\nassert os.readlink('/proc/self/fd/0') == '/dev/null'";
    let mut command = python(&folder, "assert os.isatty(0)", second);
    let guest = started(&folder, command.stdin(pty.slave.try_clone().expect("a duplicate")));
    let image = image_of(&folder, guest, &[]);
    second_part_is_right(&folder, restored(&image, &[]));
}

/// As a pc-dump leaves it that is killed while it reads a connection, or silences it for the original's end.
#[test]
fn an_original_that_is_resumed_has_no_connection_under_repair() {
    let folder = Folder::new();
    let first = format!("{CONNECTION}\nb.setsockopt(socket.IPPROTO_TCP, 19, 1)");
    let second = "assert b.getsockopt(socket.IPPROTO_TCP, 19) == 0\nb.send(b'x')\nassert a.recv(1) == b'x'";
    let guest = started(&folder, &mut python(&folder, &first, second));
    guest.signal(Signal::SIGSTOP);
    let stopped = || status(guest.pid(), "State").starts_with('T');
    wait_for("the guest stands", Duration::from_secs(5), stopped);
    let output = run("pc-dump", &["--resolve", "running", &guest.arg()]);
    assert!(output.status.success(), "{}", said(&output));
    second_part_is_right(&folder, guest);
}

#[test]
fn what_a_running_process_watches_may_come_and_go_while_it_is_looked_over() {
    let folder = Folder::new();
    let first = "import select, threading\n\
                 watch, done = select.epoll(), threading.Event()\n\
                 def come_and_go():\n    \
                 while not done.is_set():\n        \
                 fds = [os.eventfd(0) for _ in range(8)]\n        \
                 for fd in fds: watch.register(fd)\n        \
                 for fd in fds: os.close(fd)\n\
                 busy = threading.Thread(target=come_and_go)\n\
                 busy.start()";
    let guest = started(&folder, &mut python(&folder, first, "done.set(); busy.join()"));
    for _ in 0..200 {
        let output = run("pc-dump", &["--check", &guest.arg()]);
        assert!(output.status.success(), "{}", said(&output));
    }
    second_part_is_right(&folder, guest);
}

/// Job runners hand pipes down to all that they start: this test runs itself once more with one as descriptor 251.
#[test]
fn a_pipe_that_is_inherited_reaches_neither_a_guest_nor_a_copy() {
    const NAME: &str = "a_pipe_that_is_inherited_reaches_neither_a_guest_nor_a_copy";
    const WITH: [&str; 3] = ["-c", "exec \"$@\" 251>&1", "with-a-pipe"];
    if std::env::var_os("PC_INHERITED").is_none() {
        let mut again = Command::new("bash");
        again.args(WITH).arg(std::env::current_exe().expect("a program")).args([
            "--exact",
            NAME,
            "--nocapture",
        ]);
        let output = again.env("PC_INHERITED", "251").stdin(Stdio::null()).output().expect("bash runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{}", said(&output));
        return;
    }
    assert!(Path::new("/proc/self/fd/251").exists(), "nothing was inherited");
    let guest = sleeper();
    assert_eq!(descriptors(guest.pid()).len(), 3, "{:?}", descriptors(guest.pid()));
    // The tools may be started with one as well.
    let folder = Folder::new();
    let (image, pidfile) = (folder.file("image"), folder.file("pid"));
    let tool = |name: &str| {
        let mut tool = Command::new("bash");
        tool.args(WITH).arg(program(name)).stdin(Stdio::null());
        tool
    };
    let mut dump = tool("pc-dump");
    let dump = dump.args(["--leave-running", &guest.arg()]).stdout(File::create(&image).expect("an image"));
    let output = dump.stderr(Stdio::piped()).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", said(&output));
    adopt_orphans();
    let mut restore = tool("pc-restore");
    let restore = restore.args(["--detach", "--new-pid-ns", "--pidfile"]).arg(&pidfile);
    let said = folder.file("said");
    let restore =
        restore.stdin(File::open(&image).expect("an image")).stderr(File::create(&said).expect("a file"));
    assert!(restore.status().expect("pc-restore runs").success(), "{}", text(&said));
    let copy = Guest::adopt(text(&pidfile).trim().parse().expect("a pid"));
    for pid in [copy.pid(), copy.child()] {
        let fds = descriptors(pid);
        assert!(fds.iter().all(|fd| !fd.contains("/fd/251 ")) && fds.len() <= 3, "{fds:?}");
    }
}
