//! Every example is run as people would run it. Needs root, bash, zstd, make, nc, socat, pv, mbuffer and redis-server.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use pc_tests::Patience;

/// A folder for one test, and a `sleep` to save or move.
struct Scene {
    folder: PathBuf,
    sleeper: Child,
    /// A copy that is to be ended with the test.
    copy: Option<i32>,
}

impl Scene {
    fn new() -> Self {
        let template = std::env::temp_dir().join("pc-examples-XXXXXX");
        let folder = nix::unistd::mkdtemp(&template).expect("a folder");
        // A pipe that a test runner leaks would become pc-restore's stderr, and the copy hold it open.
        let closed = "for fd in /proc/$$/fd/*; do n=${fd##*/}; [ $n -le 2 ] || eval \"exec $n>&-\"; done; \
                      exec setsid sleep 1000";
        let mut sleep = Command::new("bash");
        sleep.args(["-c", closed]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not the leader of a group, setsid does not fork but becomes sleep.
        let sleeper = sleep.current_dir("/").spawn();
        let scene = Scene { folder, sleeper: sleeper.expect("sleep"), copy: None };
        scene.wait_for("sleep", scene.pid());
        scene
    }

    fn pid(&self) -> i32 {
        self.sleeper.id() as i32
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn wait_for(&self, name: &str, pid: i32) {
        let mut patience = Patience::new(Duration::from_secs(5));
        while !patience.is_over() {
            if comm(pid).as_deref() == Some(name) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("process {pid} is not {name} but {:?}", comm(pid));
    }

    /// The original must have been ended; takes it away so that its number is free.
    fn original_is_gone(&mut self) {
        self.sleeper.wait().expect("the original ends");
    }

    /// The copy must run as `pid`; it is ended with the test.
    fn copy_runs(&mut self, pid: i32) {
        self.copy = Some(pid);
        self.wait_for("sleep", pid);
        // Just released, it has to come to run first.
        let mut patience = Patience::new(Duration::from_secs(5));
        while state(pid) != Some('S') {
            assert!(!patience.is_over(), "the copy is in state {:?}", state(pid));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The copy whose number pc-restore has left in a file.
    fn copy_runs_by_pidfile(&mut self, name: &str) {
        let text = fs::read_to_string(self.folder.join(name)).expect("a pidfile");
        self.copy_runs(text.trim().parse().expect("a number"));
    }

    fn end_copy(&mut self) {
        if let Some(pid) = self.copy.take() {
            kill(pid);
            while comm(pid).as_deref() == Some("sleep") && state(pid) != Some('Z') {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end_copy();
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

fn comm(pid: i32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// Where the tools were built: beside the folder of this test.
fn tools() -> PathBuf {
    let own = std::env::current_exe().expect("a program");
    let folder = own.parent().and_then(Path::parent).expect("a target folder");
    assert!(folder.join("pc-dump").exists(), "build the workspace first");
    folder.to_owned()
}

/// Runs a program of the examples with the tools in its PATH.
fn run(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Output {
    pc_tests::keep_what_was_inherited();
    let path = format!("{}:{}", tools().display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).env("PATH", path).stdin(Stdio::null());
    command.envs(variables.iter().copied()).output().expect("the example starts")
}

fn ok(output: &Output) {
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, said(&output.stdout), said(&output.stderr));
}

#[test]
fn checkpoint_saves_privately_and_resumes_plain_and_compressed() {
    for name in ["image.pcs", "image.pcs.zst"] {
        let mut scene = Scene::new();
        let (pid, file) = (scene.pid(), scene.path(name));
        ok(&run("examples/checkpoint", &["save", &pid.to_string(), &file], &[]));
        scene.original_is_gone();
        let mode = fs::metadata(&file).expect("the image").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        ok(&run("examples/checkpoint", &["resume", &file], &[]));
        scene.copy_runs(pid);
    }
}

#[test]
fn checkpoint_of_nothing_leaves_no_file() {
    let scene = Scene::new();
    let file = scene.path("image.pcs");
    let output = run("examples/checkpoint", &["save", "4194304", &file], &[]);
    assert!(!output.status.success());
    assert_eq!(fs::read_dir(&scene.folder).expect("the folder").count(), 0);
}

#[test]
fn migrations_move_and_end_the_original() {
    for script in ["examples/migrate-ssh", "examples/migrate-zstd"] {
        let mut scene = Scene::new();
        let restore = format!("--new-pid-ns --pidfile {}", scene.path("pid"));
        let variables = [("ON_HOST", "sh -c"), ("RESTORE", &restore)];
        ok(&run(script, &[&scene.pid().to_string(), "elsewhere"], &variables));
        scene.original_is_gone();
        scene.copy_runs_by_pidfile("pid");
    }
}

/// A port of the loopback that nobody listened on a moment ago.
fn free_port() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port().to_string()
}

#[test]
fn migrations_through_netcat_socat_and_filters_move_and_end_the_original() {
    for (via, filter) in [("nc", "cat"), ("socat", "pv -q"), ("nc", "mbuffer -q -m 8M")] {
        let mut scene = Scene::new();
        let restore = format!("--new-pid-ns --pidfile {}", scene.path("pid"));
        let variables = [("ON_HOST", "sh -c"), ("RESTORE", &restore), ("VIA", via), ("FILTER", filter)];
        let args = [&scene.pid().to_string(), "127.0.0.1", &free_port()];
        ok(&run("examples/migrate-netcat", &args, &variables));
        scene.original_is_gone();
        scene.copy_runs_by_pidfile("pid");
    }
}

/// An `ssh` that stays here.
fn fake_ssh(scene: &Scene) -> String {
    let path = scene.path("ssh");
    fs::write(&path, "#!/bin/sh\nshift\nexec sh -c \"$*\"\n").expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a mode");
    path
}

#[test]
fn migrations_go_through_the_ssh_that_is_in_the_path() {
    // Each with the host's name as ssh is given it.
    let scripts: [(&str, &[&str]); 3] = [
        ("examples/migrate-ssh", &["elsewhere"]),
        ("examples/migrate-zstd", &["elsewhere"]),
        ("examples/migrate-netcat", &["127.0.0.1", "PORT"]),
    ];
    for (script, args) in scripts {
        let mut scene = Scene::new();
        let hosts = scene.path("hosts");
        let ssh = format!("#!/bin/sh\necho \"$1\" >> {hosts}\nshift\nexec sh -c \"$*\"\n");
        fs::write(fake_ssh(&scene), ssh).expect("a script");
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{path}", scene.folder.display(), tools().display());
        let restore = format!("--new-pid-ns --pidfile {}", scene.path("pid"));
        let (pid, port) = (scene.pid().to_string(), free_port());
        let rest = args.iter().map(|arg| if *arg == "PORT" { port.as_str() } else { arg });
        let args: Vec<&str> = std::iter::once(pid.as_str()).chain(rest).collect();
        ok(&run(script, &args, &[("PATH", path.as_str()), ("RESTORE", &restore)]));
        scene.original_is_gone();
        scene.copy_runs_by_pidfile("pid");
        let hosts = fs::read_to_string(hosts).expect("ssh was called");
        assert!(hosts.lines().all(|host| host == args[1]), "{script}: {hosts}");
    }
}

#[test]
fn migrate_handover_moves_over_ssh_and_ends_the_original() {
    let mut scene = Scene::new();
    let restore = format!("--new-pid-ns --pidfile {}", scene.path("pid"));
    let ssh = fake_ssh(&scene);
    let variables = [("SSH", ssh.as_str()), ("RESTORE", &restore)];
    let output = run("examples/migrate-handover", &[&scene.pid().to_string(), "elsewhere"], &variables);
    ok(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("now runs on elsewhere"));
    scene.original_is_gone();
    scene.copy_runs_by_pidfile("pid");
}

#[test]
fn migrate_handover_leaves_the_original_running_whatever_fails() {
    let scene = Scene::new();
    let (pid, ssh) = (scene.pid().to_string(), fake_ssh(&scene));
    // No host at all; an option that pc-restore does not have; a number that is taken.
    for (ssh, restore, code) in [("false", "", 5), (&ssh, "--no-such-option", 5), (&ssh, "", 6)] {
        let variables = [("SSH", ssh), ("RESTORE", restore)];
        let output = run("examples/migrate-handover", &[&pid, "elsewhere"], &variables);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(comm(scene.pid()).as_deref(), Some("sleep"));
        assert_eq!(state(scene.pid()), Some('S'));
    }
}

#[test]
fn migrate_send_moves_over_an_authenticated_link() {
    let mut scene = Scene::new();
    let (key, port) = (scene.path("key"), free_port());
    ok(&run(&tools().join("pc-recv").display().to_string(), &["--new-key", &key], &[]));
    let restore = format!("--new-pid-ns --pidfile {}", scene.path("pid"));
    let listen = format!("127.0.0.1:{port}");
    let variables = [
        ("ON_HOST", "sh -c"),
        ("RESTORE", &restore),
        ("LISTEN", &listen),
        ("SEND", "--streams 3 --compress"),
    ];
    ok(&run("examples/migrate-send", &[&scene.pid().to_string(), "127.0.0.1", &port, &key], &variables));
    scene.original_is_gone();
    scene.copy_runs_by_pidfile("pid");
}

#[test]
fn migrate_send_ends_nothing_when_the_destination_fails() {
    let scene = Scene::new();
    let (key, port) = (scene.path("key"), free_port());
    ok(&run(&tools().join("pc-recv").display().to_string(), &["--new-key", &key], &[]));
    let listen = format!("127.0.0.1:{port}");
    // An option that pc-restore does not have: it ends with 2, and so does the script.
    let variables = [("ON_HOST", "sh -c"), ("RESTORE", "--no-such-option"), ("LISTEN", &listen)];
    let args = [&scene.pid().to_string(), "127.0.0.1", &port, &key];
    let output = run("examples/migrate-send", &args, &variables);
    assert!(!output.status.success());
    assert_eq!(comm(scene.pid()).as_deref(), Some("sleep"));
    assert_ne!(state(scene.pid()), Some('Z'));
}

#[test]
fn a_destination_that_fails_ends_nothing() {
    let scene = Scene::new();
    let pid = scene.pid().to_string();
    let output = run("examples/migrate-ssh", &[&pid, "elsewhere"], &[("ON_HOST", "false")]);
    assert!(!output.status.success());
    assert_eq!(comm(scene.pid()).as_deref(), Some("sleep"));
    assert_ne!(state(scene.pid()), Some('Z'));
}

#[test]
fn the_makefile_checkpoints_resumes_and_migrates() {
    let mut scene = Scene::new();
    let (pid, image) = (scene.pid(), format!("IMAGE={}", scene.path("image.pcs")));
    let make = |more: &[&str]| {
        let number = format!("PID={pid}");
        ok(&run("make", &[&["-s", "-f", "examples/Makefile", &image, &number], more].concat(), &[]));
    };
    make(&["checkpoint"]);
    scene.original_is_gone();
    make(&["resume"]);
    scene.copy_runs(pid);
    let restore = format!("RESTORE=--new-pid-ns --pidfile {}", scene.path("pid"));
    make(&["migrate", "ON_HOST=sh -c", &restore]);
    scene.end_copy();
    scene.copy_runs_by_pidfile("pid");
}

#[test]
fn quickstart_moves_redis_and_says_ok() {
    let tools = tools().display().to_string();
    let output = run("examples/quickstart", &[], &[("PC_BIN", &tools), ("KEYS", "20000")]);
    ok(&output);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().any(|line| line.starts_with("OK: redis-server moved")), "{said}");
}
