//! What descriptors have beside what they refer to: owners, watches that are used up, files that have changed meanwhile.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use pc_tests::python::{image_of, python, refused, second_part_is_right, started};
use pc_tests::{Folder, Guest, Way, adopt_orphans, moved, program, restored, run, said, sleeper, wait_for};

/// As servers with several threads have them: each file is reported to one of these, which watches it again later.
#[test]
fn a_watch_that_is_used_up_reports_nothing_until_it_is_armed_again() {
    let first = "import select\n\
        once = select.EPOLLONESHOT\n\
        watch = select.epoll()\n\
        def use_up(fd, events):\n    \
            watch.register(fd, events | once)\n    \
            assert watch.poll(0) == [(fd, events)] or watch.poll(0) == [], fd\n\
        r, w = os.pipe()\n\
        os.write(w, b'x'); use_up(r, select.EPOLLIN); os.read(r, 1)\n\
        use_up(w, select.EPOLLOUT)\n\
        full, filled = os.pipe()\n\
        os.write(filled, b'waiting'); use_up(full, select.EPOLLIN)\n\
        event = os.eventfd(3)\n\
        use_up(event, select.EPOLLIN)\n\
        listener = socket.create_server(('127.0.0.1', 0))\n\
        client = socket.create_connection(listener.getsockname())\n\
        use_up(listener.fileno(), select.EPOLLIN)\n\
        client.close(); listener.accept()[0].close()\n\
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        use_up(udp.fileno(), select.EPOLLOUT)\n\
        armed = os.eventfd(1)\n\
        watch.register(armed, select.EPOLLIN | once)";
    let second = "os.close(w)\n\
        info = open(f'/proc/self/fdinfo/{watch.fileno()}').read()\n\
        assert info.count('events: 40000000') == 5, info\n\
        assert watch.poll(0) == [(armed, select.EPOLLIN)]\n\
        assert watch.poll(0) == []\n\
        watch.modify(r, select.EPOLLIN | once)\n\
        assert watch.poll(0) == [(r, select.EPOLLHUP)]\n\
        watch.modify(event, select.EPOLLIN | once)\n\
        assert watch.poll(0) == [(event, select.EPOLLIN)] and os.eventfd_read(event) == 3\n\
        assert os.read(r, 10) == b'' and os.read(full, 10) == b'waiting'";
    for way in [Way::File, Way::NewPidNs] {
        let folder = Folder::new();
        let guest = started(&folder, &mut python(&folder, first, second));
        second_part_is_right(&folder, moved(guest, way));
    }
}

#[test]
fn a_watch_that_cannot_be_used_up_again_is_refused_by_name() {
    let folder = Folder::new();
    let first = "import select\n\
        watch = select.epoll()\n\
        nothing = select.epoll()\n\
        event = os.eventfd(1)\n\
        nothing.register(event, select.EPOLLIN)\n\
        watch.register(nothing, select.EPOLLIN | select.EPOLLONESHOT)\n\
        watch.poll(0)\n\
        os.eventfd_read(event)";
    let guest = started(&folder, &mut python(&folder, first, "assert watch.poll(0) == []"));
    let output = run("pc-dump", &["--once", &guest.arg()]);
    let text = said(&output);
    assert!(output.status.code() == Some(6) && text.contains("EPOLLONESHOT"), "{text}");
    second_part_is_right(&folder, guest);
}

/// Set before signal-driven I/O is on, or without it ever being.
#[test]
fn owners_and_signals_of_descriptors_that_are_no_sockets_are_kept() {
    let first = "import fcntl\n\
        r, w = os.pipe()\n\
        fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid())\n\
        fcntl.fcntl(r, 10, signal.SIGUSR2)\n\
        fcntl.fcntl(w, 10, signal.SIGHUP)";
    let second = "assert fcntl.fcntl(r, fcntl.F_GETOWN) == os.getpid()\n\
        assert fcntl.fcntl(r, 11) == signal.SIGUSR2 and fcntl.fcntl(w, 11) == signal.SIGHUP\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])\n\
        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\n\
        os.write(w, b'x')\n\
        assert signal.sigtimedwait([signal.SIGUSR2], 5)";
    for way in [Way::File, Way::NewPidNs, Way::HandOver] {
        let folder = Folder::new();
        let guest = started(&folder, &mut python(&folder, first, second));
        second_part_is_right(&folder, moved(guest, way));
    }
}

#[test]
fn signals_to_strangers_and_notices_of_directories_are_refused_by_name() {
    let other = sleeper();
    let cases = [
        (
            format!("import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {})", other.pid()),
            "F_SETOWN",
        ),
        (
            "import fcntl\nf = os.open('.', 0)\nfcntl.fcntl(f, fcntl.F_NOTIFY, fcntl.DN_CREATE)".to_owned(),
            "F_NOTIFY",
        ),
    ];
    for (first, word) in cases {
        let folder = Folder::new();
        let guest = started(&folder, &mut python(&folder, &first, "pass"));
        let output = run("pc-dump", &["--check", &guest.arg()]);
        let text = said(&output);
        assert!(output.status.code() == Some(6) && text.contains(word), "{word}: {text}");
        second_part_is_right(&folder, guest);
    }
}

#[test]
fn places_opened_with_o_path_stay_what_they_were() {
    let folder = Folder::new();
    let at = folder.file("");
    let at = at.display();
    let first = format!(
        "os.symlink('nowhere', '{at}/link')\n\
         os.mkfifo('{at}/fifo')\n\
         link = os.open('{at}/link', os.O_PATH | os.O_NOFOLLOW)\n\
         fifo = os.open('{at}/fifo', os.O_PATH)\n\
         null = os.open('/dev/tty', os.O_PATH)\n\
         here = os.open('{at}', os.O_PATH)"
    );
    let second = format!(
        "assert os.readlink('', dir_fd=link) == 'nowhere'\n\
         assert os.readlink(f'/proc/self/fd/{{link}}') == '{at}/link'.replace('//', '/')\n\
         assert os.stat(fifo).st_ino == os.stat('{at}/fifo').st_ino\n\
         assert os.readlink(f'/proc/self/fd/{{null}}') == '/dev/tty'\n\
         assert 'link' in os.listdir(f'/proc/self/fd/{{here}}')"
    );
    let guest = started(&folder, &mut python(&folder, &first, &second));
    second_part_is_right(&folder, moved(guest, Way::File));
}

/// A log that is followed, and one that is written and was rotated by copying.
#[test]
fn a_file_that_is_read_may_have_grown_and_one_that_is_appended_to_may_be_shorter() {
    let folder = Folder::new();
    let (read, written) = (folder.file("read"), folder.file("written"));
    fs::write(&read, "one\n").expect("a file");
    let first = format!(
        "log = open('{}')\nassert log.read() == 'one\\n'\nout = os.open('{}', os.O_CREAT | os.O_WRONLY | os.O_APPEND)\nos.write(out, b'long ago')",
        read.display(),
        written.display()
    );
    let second = format!(
        "assert log.read() == 'two\\n'\nos.write(out, b'now')\nassert open('{}').read() == 'now'",
        written.display()
    );
    let guest = started(&folder, &mut python(&folder, &first, &second));
    let image = image_of(&folder, guest, &[]);
    OpenOptions::new().append(true).open(&read).expect("a file").write_all(b"two\n").expect("written");
    File::create(&written).expect("truncated");
    second_part_is_right(&folder, restored(&image, &[]));
}

#[test]
fn a_mapped_file_that_has_grown_is_refused() {
    let folder = Folder::new();
    let data = folder.file("data");
    fs::write(&data, [1u8; 5000]).expect("a file");
    let first = format!(
        "import mmap\nf = open('{}', 'rb')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)",
        data.display()
    );
    let image = image_of(&folder, started(&folder, &mut python(&folder, &first, "pass")), &[]);
    OpenOptions::new().append(true).open(&data).expect("a file").write_all(b"more").expect("written");
    let text = refused(&image, &[]);
    assert!(text.contains("5004 bytes here, 5000 at the source"), "{text}");
}

/// A process with so much memory that its end takes a while.
fn large(folder: &Folder) -> Guest {
    started(folder, &mut python(folder, "room = bytearray(b'x') * (200 << 20)", "pass"))
}

/// Its parent waits for its end all the time.
#[test]
fn a_process_that_was_ended_can_be_restored_at_once() {
    for _ in 0..3 {
        let folder = Folder::new();
        let image = folder.file("image");
        let mut guest = large(&folder);
        let mut dump = Command::new(program("pc-dump"));
        dump.args(["--once", "--kill", &guest.arg()])
            .stdin(Stdio::null())
            .stdout(File::create(&image).expect("a file"));
        let waits = std::thread::spawn(move || guest.ended(Duration::from_secs(20)));
        assert!(dump.status().expect("pc-dump runs").success());
        adopt_orphans();
        let pidfile = folder.file("pid");
        let mut restore = Command::new(program("pc-restore"));
        restore.args(["--detach", "--pidfile"]).arg(&pidfile).stdin(File::open(&image).expect("an image"));
        let output = restore.stderr(Stdio::piped()).output().expect("pc-restore runs");
        waits.join().expect("it was ended");
        assert!(output.status.success(), "{}", said(&output));
        let copy = Guest::adopt(pc_tests::python::text(&pidfile).trim().parse().expect("a pid"));
        second_part_is_right(&folder, copy);
    }
}

#[test]
fn a_pid_that_a_zombie_has_is_said_to_be_one_with_its_parent() {
    let folder = Folder::new();
    let guest = started(&folder, &mut python(&folder, "", "pass"));
    let image = folder.file("image");
    pc_tests::dump_to_file(&guest, &image, &["--kill"]);
    // Nobody waits for it here.
    wait_for("its end", Duration::from_secs(5), || pc_tests::status(guest.pid(), "State").starts_with('Z'));
    let text = refused(&image, &[]);
    assert!(text.contains(&format!("a zombie, its parent is {}", std::process::id())), "{text}");
}

/// More descriptors than the usual soft limit of open files, which is that of both tools. The limit is raised for them as far as
/// it goes; beyond that they are refused by name.
#[test]
fn more_descriptors_than_the_limit_of_open_files_need_no_higher_one() {
    let first = "import resource\n\
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))\n\
        events = [os.eventfd(i) for i in range(1500)]\n\
        listener = socket.create_server(('127.0.0.1', 0), backlog=1000)\n\
        clients = [socket.create_connection(listener.getsockname()) for _ in range(600)]\n\
        servers = [listener.accept()[0] for _ in clients]";
    let second = "assert [os.eventfd_read(fd) for fd in events[1:]] == list(range(1, 1500))\n\
        names = {s.getpeername(): s for s in servers}\n\
        for c in clients:\n    \
            c.send(b'over')\n    \
            assert names[c.getsockname()].recv(10) == b'over'\n\
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3000, 3000)";
    let folder = Folder::new();
    let mut guest = started(&folder, &mut python(&folder, first, second));
    let limited = |limit: &str, tool: &str| {
        let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_resource", "sh", "-c", &script]).arg(program(tool));
        command.arg("--tcp-established");
        command
    };
    let image = folder.file("image");
    let dump = |limit: &str| {
        let out = File::create(&image).expect("an image");
        let mut tool = limited(limit, "pc-dump");
        tool.args(["--kill", &guest.arg()]).stdout(out).output().expect("it runs")
    };
    let few = dump("-n 1024");
    let text = said(&few);
    assert!(few.status.code() == Some(6) && text.contains("1200 TCP connections"), "{text}");
    let output = dump("-Sn 1024");
    assert!(output.status.success(), "{}", said(&output));
    guest.ended(Duration::from_secs(10));
    let pidfile = folder.file("pid");
    adopt_orphans();
    let restore = |limit: &str| {
        let mut tool = limited(limit, "pc-restore");
        let tool = tool.args(["--detach", "--new-pid-ns", "--pidfile"]).arg(&pidfile);
        tool.stdin(File::open(&image).expect("an image")).output().expect("it runs")
    };
    let few = restore("-n 1024");
    let text = said(&few);
    assert!(few.status.code() == Some(6) && text.contains("hard limit of open files is 1024"), "{text}");
    let output = restore("-Sn 1024");
    assert!(output.status.success(), "{}", said(&output));
    let pid = fs::read_to_string(&pidfile).expect("a pidfile").trim().parse().expect("a number");
    second_part_is_right(&folder, Guest::adopt(pid));
}

/// Clients take what a listening socket shows of its owner (SO_PEERCRED) for the user that they talk to: never pc-restore's.
/// Where they saw others than the process has now, that is said.
#[test]
fn clients_of_a_unix_socket_see_the_user_of_the_copy() {
    let folder = Folder::new();
    fs::set_permissions(folder.file(""), Permissions::from_mode(0o777)).expect("a folder for everybody");
    let path = folder.file("socket");
    let drop = "os.setgroups([4713])\n\
        os.setresgid(4712, 4712, 4712)\n\
        os.setresuid(4711, 4711, 4711)";
    let bind = format!("listener = socket.socket(socket.AF_UNIX)\nlistener.bind({:?})", path.display());
    let notices = |guest: &Guest| {
        let output = run("pc-dump", &["--check", &guest.arg()]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", said(&output));
        text.lines().filter(|line| line.contains("SO_PEERCRED")).map(str::to_owned).collect::<Vec<_>>()
    };
    let first = format!("{bind}\nlistener.listen()\n{drop}");
    let guest = started(&folder, &mut python(&folder, &first, "pass"));
    let said = notices(&guest);
    assert!(matches!(&said[..], [line] if line.contains("user 0 ") && line.contains("4711")), "{said:?}");
    second_part_is_right(&folder, guest);
    fs::remove_file(&path).expect("a socket");
    fs::remove_file(folder.file("report.ready")).expect("it was ready");
    let first = format!("{bind}\n{drop}\nlistener.listen()");
    let guest = started(&folder, &mut python(&folder, &first, "pass"));
    assert_eq!(notices(&guest), [""; 0]);
    let copy = restored(&image_of(&folder, guest, &[]), &[]);
    let client = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    let seen = getsockopt(&client, PeerCredentials).expect("credentials");
    assert_eq!((seen.uid(), seen.gid()), (4711, 4712));
    second_part_is_right(&folder, copy);
}
