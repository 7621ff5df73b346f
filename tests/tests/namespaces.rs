//! A process that is in namespaces of its own, has a root directory of its own, or threads that do not share everything: no right is
//! gained, and nothing is dropped without a word.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use pc_image::{Item, Reader, Record, Source as _, Writer};
use pc_tests::apart::{Apart, namespace};
use pc_tests::{Guest, adopt_orphans, program, said};

/// A namespace that is kept when its process ends, as a path.
fn kept(guest: &Apart, kind: &str) -> (File, String) {
    let file = File::open(format!("/proc/{}/ns/{kind}", guest.guest.pid())).expect("a namespace");
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    (file, path)
}

fn asked_for_and_joined(kind: &str) {
    let guest = Apart::start(&["ns", kind]);
    let (before, own) = (guest.namespace(kind), namespace(std::process::id() as i32, kind));
    assert_ne!(before, own);
    let found = guest.findings();
    let (_kept, path) = kept(&guest, kind);
    let check = pc_tests::run("pc-dump", &["--check", &guest.guest.arg()]);
    let told = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && told.contains(&format!("--join {kind}=")), "{told} {}", said(&check));
    let image = guest.dumped(&[]);
    image.refused(&[], &["namespace", kind, "--join"]);
    let (copy, _) = image.restored(&["--join", &format!("{kind}={path}")]);
    assert_eq!(copy.namespace(kind), before);
    assert_eq!(copy.findings(), found, "files are opened where the process was");
    for other in ["user", "net", "uts", "ipc", "mnt", "cgroup"].into_iter().filter(|other| *other != kind) {
        assert_eq!(copy.namespace(other), namespace(std::process::id() as i32, other), "{other}");
    }
    // Once more, by a process, and then into none of its own.
    let image = copy.dumped(&[]);
    let mut holder = Command::new("nsenter");
    let holder = Guest::start(holder.arg(format!("--{}={path}", option_of(kind))).args(["sleep", "1000"]));
    pc_tests::wait_for("it is there", std::time::Duration::from_secs(10), || {
        fs::read_to_string(format!("/proc/{}/comm", holder.pid())).is_ok_and(|comm| comm == "sleep\n")
    });
    let (copy, _) = image.restored(&["--join", &format!("{kind}=pid:{}", holder.pid())]);
    assert_eq!((copy.namespace(kind), copy.findings()), (before, found));
    if kind != "mnt" {
        let (copy, said) = copy.dumped(&[]).restored(&["--join", &format!("{kind}=own")]);
        assert!(said.contains(&format!("{kind} namespace becomes ours")), "{said}");
        assert_eq!(copy.namespace(kind), own);
        copy.findings();
    }
}

/// As nsenter(1) has it.
fn option_of(kind: &str) -> &str {
    if kind == "mnt" { "mount" } else { kind }
}

#[test]
fn a_net_namespace_is_asked_for_and_joined() {
    asked_for_and_joined("net");
}

#[test]
fn an_uts_namespace_is_asked_for_and_joined() {
    asked_for_and_joined("uts");
}

#[test]
fn an_ipc_namespace_is_asked_for_and_joined() {
    asked_for_and_joined("ipc");
}

#[test]
fn a_cgroup_namespace_is_asked_for_and_joined() {
    asked_for_and_joined("cgroup");
}

#[test]
fn a_mount_namespace_is_asked_for_and_joined_with_its_files() {
    asked_for_and_joined("mnt");
}

/// It had all capabilities, in its user namespace; with them it could open /etc/shadow here.
#[test]
fn a_process_of_a_user_namespace_gains_nothing_outside_of_it() {
    let guest = Apart::start(&["user"]);
    assert_eq!((guest.found("uid"), guest.found("shadow")), ("0".into(), "permission denied".into()));
    let before = guest.namespace("user");
    let ids = guest.guest.pid();
    let mut holder = Command::new("nsenter");
    let holder =
        holder.args(["--preserve-credentials", &format!("--user=/proc/{ids}/ns/user"), "sleep", "1000"]);
    let holder = Guest::start(holder);
    pc_tests::wait_for("it is there", std::time::Duration::from_secs(10), || {
        namespace(holder.pid(), "user") == before
    });
    let image = guest.dumped(&[]);
    image.refused(&[], &["namespace", "user", "--join user="]);
    let (copy, _) = image.restored(&["--join", &format!("user=pid:{}", holder.pid())]);
    assert_eq!(copy.namespace("user"), before);
    assert_eq!((copy.found("uid"), copy.found("shadow")), ("0".into(), "permission denied".into()));
    assert_ne!(pc_tests::status(copy.guest.pid(), "CapEff"), "0000000000000000", "those of its namespace");
    let (copy, said) = copy.dumped(&[]).restored(&["--join", "user=own"]);
    assert!(said.contains("user namespace becomes ours"), "{said}");
    assert_eq!((copy.found("uid"), copy.found("shadow")), ("65534".into(), "permission denied".into()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(pc_tests::status(copy.guest.pid(), set), "0000000000000000", "{set}");
    }
    assert_eq!(pc_tests::status(copy.guest.pid(), "NoNewPrivs"), "1");
}

#[test]
fn what_cannot_be_joined_is_refused_before_the_stop_of_a_hand_over() {
    let guest = Apart::start(&["ns", "uts"]);
    let folder = pc_tests::Folder::new();
    let fifo = folder.file("back");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let script =
        "\"$1\" --handover $3 <$0 | \"$2\" --handover --detach --new-pid-ns >$0; echo ${PIPESTATUS[@]}";
    let mut shell = Command::new("bash");
    shell.args(["-c", script]).arg(&fifo).arg(program("pc-dump")).arg(program("pc-restore"));
    let output = shell.arg(guest.guest.arg()).stdin(Stdio::null()).output().expect("bash runs");
    let text = said(&output);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "6 6\n", "{text}");
    assert!(text.contains("--join uts="), "{text}");
    guest.findings();
}

/// Its files are opened in its own mount namespace: those of a namespace that ends with pc-restore have no path any more.
#[test]
fn a_copy_made_in_a_mount_namespace_that_ends_keeps_its_paths_and_can_be_moved_again() {
    let guest = Apart::start(&[]);
    let found = guest.findings();
    let private = ["unshare", "--mount"];
    let (copy, _) = guest.dumped(&[]).restored_by(&private, &["--new-pid-ns"]);
    let link = |fd: &str| fs::read_link(format!("/proc/{}/fd/{fd}", copy.guest.pid())).expect("a descriptor");
    assert_eq!(link("0"), std::path::Path::new("/dev/null"));
    assert_eq!(copy.findings(), found);
    let (copy, _) = copy.dumped(&[]).restored_by(&private, &["--new-pid-ns"]);
    assert_eq!(copy.findings(), found);
    let (copy, said) = copy.dumped(&[]).restored(&[]);
    assert!(said.contains("mnt namespace, which a restore made"), "{said}");
    assert_eq!(copy.findings(), found);
}

#[test]
fn a_root_directory_of_its_own_is_kept() {
    let guest = Apart::start(&["chroot", "{}"]);
    let root = fs::read_link(format!("/proc/{}/root", guest.guest.pid())).expect("a root");
    let found = guest.findings();
    assert!(found.contains("anew plain"), "{found}");
    let (copy, _) = guest.dumped(&[]).restored(&[]);
    assert_eq!(fs::read_link(format!("/proc/{}/root", copy.guest.pid())).expect("a root"), root);
    assert_eq!(copy.findings(), found);
    let (copy, _) = copy.dumped(&[]).restored(&["--new-pid-ns"]);
    assert_eq!(copy.findings(), found);
}

#[test]
fn threads_that_do_not_share_everything_are_refused_by_name() {
    for (what, words) in [
        ("files", "a table of descriptors of its own"),
        ("fs", "a working directory, root and umask of its own"),
        ("uts", "in another uts namespace"),
    ] {
        let guest = Apart::start(&["thread", what]);
        let output = pc_tests::run("pc-dump", &["--check", &guest.guest.arg()]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(6), "{what}: {text}");
        assert!(text.contains(words), "{what}: {text}");
        guest.findings();
    }
}

/// Its keys would be lost.
#[test]
fn a_thread_or_process_keyring_is_refused_by_name() {
    for (which, words) in [("-1", "has a keyring of its own"), ("-2", "has a keyring of its process")] {
        let folder = pc_tests::Folder::new();
        let ready = folder.file("ready");
        let script = "import ctypes, sys, time\n\
                      assert ctypes.CDLL(None).syscall(250, 0, int(sys.argv[1]), 1) > 0 # keyctl(2)\n\
                      open(sys.argv[2], 'w')\ntime.sleep(1000)";
        let guest = Guest::start(Command::new("python3").args(["-c", script, which]).arg(&ready));
        pc_tests::wait_for("a keyring", std::time::Duration::from_secs(20), || ready.exists());
        let mut dump = Command::new(program("pc-dump"));
        let dump = dump.args(["--once", "--kill", &guest.arg()]).stdin(Stdio::null());
        let output = dump.stdout(Stdio::piped()).output().expect("pc-dump runs");
        assert_eq!(output.status.code(), Some(6), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}

/// A stream that claims more than pc-restore has gets none of it.
#[test]
fn capabilities_that_pc_restore_lacks_are_refused() {
    adopt_orphans();
    let image = Apart::start(&[]).dumped(&[]);
    let bytes = fs::read(&image.path).expect("an image");
    for (what, change) in [
        (
            "capabilities that we lack",
            (|thread| thread.creds.cap_permitted |= 1 << 50) as fn(&mut pc_image::Thread),
        ),
        ("capability bounding set", |thread| thread.creds.cap_bounding |= 1 << 50),
        ("effective", |thread| {
            thread.creds.cap_permitted = 0;
            thread.creds.cap_effective = 1;
        }),
        ("inheritable", |thread| thread.creds.cap_inheritable |= 1 << 50),
        ("ambient", |thread| thread.creds.cap_ambient |= 1),
    ] {
        fs::write(&image.path, edited(&bytes, change)).expect("an image");
        image.refused(&[], &[what]);
    }
}

/// A stream with every thread changed.
fn edited(bytes: &[u8], change: fn(&mut pc_image::Thread)) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    let mut writer = Writer::new(Vec::new(), [7; 16]).expect("a stream");
    use pc_image::Sink as _;
    while let Some(item) = reader.next().expect("a good stream") {
        match item {
            Item::Record(mut record) => match &mut *record {
                Record::Commit(_) => writer.commit().expect("counted right"),
                Record::Thread(thread) => {
                    change(thread);
                    writer.record(&record).expect("a record");
                }
                _ => writer.record(&record).expect("a record"),
            },
            Item::Pages(pages) => writer.pages(pages.space, &pages.runs, &[pages.data()]).expect("pages"),
            Item::Patches(all) => writer.patches(all.space, &all.patches, all.data()).expect("patches"),
        }
    }
    writer.finish().expect("a stream")
}
