//! Files of /proc that mean a process mean the copy afterwards, whatever number that has; those of strangers are refused.

#![forbid(unsafe_code)]

use std::fs::File;
use std::process::{Command, Stdio};

use pc_tests::python::{python, second_part_is_right, started};
use pc_tests::{Folder, Guest, Way, moved, run, said, sleeper};

/// Opens files of its own, of a thread and of nobody, and tells afterwards whose they are.
const OWN: &str = "import ctypes, threading\n\
     word = ctypes.c_long(1)\n\
     me = os.getpid()\n\
     mem = os.open('/proc/self/mem', os.O_RDWR)\n\
     stat = os.open('/proc/thread-self/stat', os.O_RDONLY)\n\
     os.lseek(stat, 1, os.SEEK_SET)\n\
     done = threading.Event()\n\
     worker = threading.Thread(target=done.wait)\n\
     worker.start()\n\
     comm = os.open(f'/proc/self/task/{worker.native_id}/comm', os.O_RDONLY)\n\
     fds = os.open('/proc/self/fd', os.O_RDONLY | os.O_DIRECTORY)\n\
     place = os.open('/proc/self', os.O_PATH)\n\
     info = os.dup2(os.open('/proc/self/status', os.O_RDONLY), 50, False)\n\
     limits = os.dup2(os.open('/proc/self/limits', os.O_RDONLY), 60)\n\
     mounts = os.open('/proc/self/mounts', os.O_RDONLY)\n\
     import select\n\
     watch = select.epoll()\n\
     watch.register(mounts, select.EPOLLPRI)";

const ITS_OWN: &str = "done.set()\n\
     worker.join()\n\
     os.pwrite(mem, (7).to_bytes(8, 'little'), ctypes.addressof(word))\n\
     assert word.value == 7, word\n\
     numbers = {os.readlink(f'/proc/self/fd/{fd}') for fd in (mem, stat, fds, place, limits, mounts)}\n\
     assert numbers == {f'/proc/{me}/mem', f'/proc/{me}/task/{me}/stat', f'/proc/{me}/fd', f'/proc/{me}', \
     f'/proc/{me}/limits', f'/proc/{me}/mounts'}, numbers\n\
     assert os.read(stat, 100).decode().startswith(str(me)[1:] + ' ')\n\
     assert 'mem' not in os.listdir(fds) and str(mem) in os.listdir(fds)\n\
     assert os.readlink('exe', dir_fd=place) == os.path.realpath(sys.executable)\n\
     assert os.get_inheritable(limits) and not os.get_inheritable(info)\n\
     assert os.read(limits, 5) == b'Limit' and os.read(info, 5) == b'Name:'";

fn guest(folder: &Folder) -> Guest {
    started(folder, &mut python(folder, OWN, ITS_OWN))
}

#[test]
fn files_of_its_own_are_its_own_under_the_same_number() {
    let folder = Folder::new();
    second_part_is_right(&folder, moved(guest(&folder), Way::File));
}

#[test]
fn files_of_proc_that_mean_nobody_are_files_like_others() {
    let folder = Folder::new();
    let first = "a = os.open('/proc/meminfo', os.O_RDONLY)\nb = os.open('/proc/sys/kernel/pid_max', os.O_RDWR)\n\
        os.chdir('/proc/sys')\nassert os.read(a, 3) == b'Mem'";
    let second =
        "assert os.read(a, 5) == b'Total' and os.read(b, 9).strip().isdigit() and os.getcwd() == '/proc/sys'";
    let guest = started(&folder, &mut python(&folder, first, second));
    second_part_is_right(&folder, moved(guest, Way::File));
}

/// In a pid namespace of its own, where its number is another one as the host sees it.
#[test]
fn files_of_its_own_are_its_own_in_a_new_pid_namespace_and_when_it_is_moved_on() {
    let folder = Folder::new();
    let copy = moved(guest(&folder), Way::NewPidNs);
    let copy = moved(copy, Way::NewPidNs);
    second_part_is_right(&folder, moved(copy, Way::HandOver));
}

/// With rounds, in which descriptors are opened early: these must not be, as the number is the original's till then.
#[test]
fn files_of_its_own_are_opened_when_the_copy_is_there() {
    pc_tests::adopt_orphans();
    let folder = Folder::new();
    let mut original = guest(&folder);
    let image = folder.file("image");
    let mut dump = Command::new(pc_tests::program("pc-dump"));
    let dump = dump.args(["--kill", &original.arg()]).stdin(Stdio::null());
    let dumped = dump.stdout(File::create(&image).expect("an image")).output().expect("pc-dump runs");
    assert!(dumped.status.success(), "{}", said(&dumped));
    original.ended(std::time::Duration::from_secs(10));
    second_part_is_right(&folder, pc_tests::restored(&image, &[]));
}

#[test]
fn files_of_a_stranger_and_what_cannot_be_opened_again_are_refused_by_name() {
    let other = sleeper();
    let ended = "import subprocess\n\
         child = subprocess.Popen(['sleep', '60'])\n\
         f = os.open(f'/proc/{child.pid}/stat', os.O_RDONLY)\n\
         child.kill(); child.wait()";
    let cases = [
        (format!("f = os.open('/proc/{}/maps', os.O_RDONLY)", other.pid()), "of process"),
        (ended.to_owned(), "that has ended"),
        ("f = os.open('/proc/self/ns/net', os.O_RDONLY)".to_owned(), "net:["),
        ("f = os.pidfd_open(os.getpid())".to_owned(), "a pidfd"),
        ("f = os.open('/proc/self/exe', os.O_PATH | os.O_NOFOLLOW)".to_owned(), "a link opened with O_PATH"),
        ("f = os.open('/proc/self/uid_map', os.O_WRONLY)".to_owned(), "uid_map"),
        ("os.chdir('/proc/self')".to_owned(), "its cwd"),
    ];
    for (first, word) in cases {
        let folder = Folder::new();
        let guest = started(&folder, &mut python(&folder, &first, "pass"));
        for args in [&["--check"][..], &["--once"], &[]] {
            let output = run("pc-dump", &[args, &[&guest.arg()]].concat());
            let text = said(&output);
            assert!(output.status.code() == Some(6) && text.contains(word), "{word}: {text}");
        }
        second_part_is_right(&folder, guest);
    }
}

/// Page numbers are shown to whoever had the right when the file was opened, which is not pc-restore's.
#[test]
fn a_copy_does_not_see_more_in_its_pagemap_than_the_original() {
    let folder = Folder::new();
    let first = "import ctypes\n\
        os.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n\
        f = os.open('/proc/self/pagemap', os.O_RDONLY)";
    let second = "buf = ctypes.create_string_buffer(b'here')\n\
        entry = int.from_bytes(os.pread(f, 8, ctypes.addressof(buf) // 4096 * 8), 'little')\n\
        assert entry >> 63 == 1 and entry & ((1 << 55) - 1) == 0, hex(entry)";
    std::fs::set_permissions(folder.file(""), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("a mode");
    let guest = started(&folder, &mut python(&folder, first, second));
    second_part_is_right(&folder, moved(guest, Way::NewPidNs));
}
