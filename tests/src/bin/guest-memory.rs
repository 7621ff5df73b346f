//! A process with an address space of a kind that few have, which looks at it again after a move.
//!
//! `guest-memory REPORT FOLDER WHAT [COUNT]`: see `pc_tests::guest`. Works in FOLDER. WHAT is one of `settings`, `limits`,
//! `mappings` (COUNT of them), `memfd`, `names`, `secret` and `compat`; the last two only wait.

use std::ffi::OsStr;
use std::fs;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::sync::mpsc;

use libc::{c_int, c_void};
use pc_tests::guest::asked_twice;

const PAGE: usize = 4096;
/// Where its mappings begin, with gaps between them.
const AT: usize = 0x5300_0000_0000;
const SLOT: usize = 1 << 22;
const LEN: usize = 16 * PAGE;
const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANON: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const MAP_DROPPABLE: c_int = 8;
const SYS_MEMFD_SECRET: i64 = 447;
const SYS_MSEAL: i64 = 462;

fn raw(nr: i64, args: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    let got = unsafe { libc::syscall(nr, a, b, c, d, e) };
    if got < 0 { -i64::from(Error::last_os_error().raw_os_error().unwrap_or(0)) } else { got }
}

fn ok(got: i64, what: &str) -> i64 {
    assert!(got >= 0, "{what}: {}", Error::from_raw_os_error(-got as i32));
    got
}

fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

fn map(slot: usize, len: usize, prot: c_int, flags: c_int, fd: c_int) -> usize {
    let want = AT + slot * SLOT;
    // SAFETY: a new mapping at a place that is free.
    let got = unsafe { libc::mmap(want as *mut c_void, len, prot, flags | libc::MAP_FIXED_NOREPLACE, fd, 0) };
    assert_eq!(got as usize, want, "mapping {slot}: {}", Error::last_os_error());
    want
}

fn fill(addr: usize, seed: u8) {
    for i in 0..LEN {
        // SAFETY: inside a writable mapping of ours.
        unsafe { ((addr + i) as *mut u8).write_volatile((i / 7) as u8 ^ seed) };
    }
}

fn sum(addr: usize) -> u64 {
    // SAFETY: a mapping of ours that may be read.
    let bytes = unsafe { std::slice::from_raw_parts(addr as *const u8, LEN) };
    bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(1_000_003).wrapping_add(u64::from(*byte)))
}

fn prctl(option: usize, args: [usize; 4]) -> i64 {
    raw(libc::SYS_prctl, [option, args[0], args[1], args[2], args[3]])
}

fn has_keys() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" ospke"))
}

/// The policy of the calling thread, or of a mapping.
fn policy(addr: usize) -> String {
    const MPOL_F_ADDR: usize = 2;
    let (mut mode, mut nodes) = (0i32, [0u64; 16]);
    let (to, mask) = (std::ptr::from_mut(&mut mode) as usize, nodes.as_mut_ptr() as usize);
    let flags = if addr == 0 { 0 } else { MPOL_F_ADDR };
    let got = raw(libc::SYS_get_mempolicy, [to, mask, 1024, addr, flags]);
    format!("{got} {mode:#x} {:#x}", nodes[0])
}

/// A thread with a policy of its own, that tells it when it is asked.
struct Other {
    ask: mpsc::Sender<()>,
    answer: mpsc::Receiver<String>,
}

impl Other {
    fn start() -> Other {
        let (ask, asked) = mpsc::channel();
        let (tell, answer) = mpsc::channel();
        std::thread::spawn(move || {
            const MPOL_PREFERRED: usize = 1;
            let nodes = [1u64];
            ok(raw(libc::SYS_set_mempolicy, [MPOL_PREFERRED, at(&nodes), 64, 0, 0]), "set_mempolicy");
            while asked.recv().is_ok() {
                let _ = tell.send(policy(0));
            }
        });
        let other = Other { ask, answer };
        other.tells();
        other
    }

    fn tells(&self) -> String {
        self.ask.send(()).expect("it waits");
        self.answer.recv().expect("it tells")
    }
}

/// Mappings and settings of every kind. Gives the addresses of what can be read.
fn settings() -> Vec<usize> {
    const MPOL_INTERLEAVE: usize = 3;
    const MPOL_BIND: usize = 2;
    const MPOL_F_STATIC_NODES: usize = 1 << 15;
    let nodes = [1u64];
    let droppable = map(0, LEN, RW, MAP_DROPPABLE | libc::MAP_ANONYMOUS, -1);
    let sealed = map(1, LEN, RW, ANON, -1);
    let interleaved = map(2, LEN, RW, ANON, -1);
    let bound = map(3, LEN, RW, ANON, -1);
    let executable = map(4, LEN, RW, ANON, -1);
    let unmerged = map(5, LEN, RW, ANON, -1);
    let readable = vec![droppable, sealed, interleaved, bound, unmerged];
    readable.iter().chain([&executable]).for_each(|addr| fill(*addr, (addr / SLOT) as u8));
    let half = LEN / 2;
    ok(raw(libc::SYS_mbind, [interleaved, half, MPOL_INTERLEAVE, at(&nodes), 64]), "mbind");
    ok(raw(libc::SYS_mbind, [bound, LEN, MPOL_BIND | MPOL_F_STATIC_NODES, at(&nodes), 64]), "mbind");
    ok(raw(libc::SYS_set_mempolicy, [MPOL_INTERLEAVE, at(&nodes), 64, 0, 0]), "set_mempolicy");
    ok(raw(libc::SYS_mprotect, [executable, LEN, libc::PROT_EXEC as usize, 0, 0]), "mprotect");
    ok(prctl(41, [1, 2, 0, 0]), "PR_SET_THP_DISABLE");
    ok(prctl(67, [1, 0, 0, 0]), "PR_SET_MEMORY_MERGE");
    ok(raw(libc::SYS_madvise, [unmerged, LEN, libc::MADV_UNMERGEABLE as usize, 0, 0]), "madvise");
    for (number, base, flags) in [(1u32, 0x1234_5000u32, 0b101_0001u32), (700, 0x8765_4321, 0b000_1011)] {
        let entry = [number, base, 0x1_2345, flags];
        ok(raw(libc::SYS_modify_ldt, [0x11, at(&entry), 16, 0, 0]), "modify_ldt");
    }
    ok(raw(SYS_MSEAL, [sealed, LEN / 2, 0, 0, 0]), "mseal");
    if has_keys() {
        keys();
    }
    ok(prctl(65, [1, 0, 0, 0]), "PR_SET_MDWE");
    readable
}

/// Allocates keys, one of which is freed again and one used by no mapping. What may only be executed has the first.
fn keys() {
    const DISABLE_WRITE: usize = 2;
    let mine = map(8, LEN, RW, ANON, -1);
    let freed = map(9, LEN, RW, ANON, -1);
    let [a, b, c, d] =
        [0, DISABLE_WRITE, 0, 0].map(|rights| ok(raw(libc::SYS_pkey_alloc, [0, rights, 0, 0, 0]), "pkey"));
    for (addr, key) in [(mine, b), (freed, d)] {
        ok(raw(libc::SYS_pkey_mprotect, [addr, LEN, RW as usize, key as usize, 0]), "pkey_mprotect");
    }
    for key in [a, d] {
        ok(raw(libc::SYS_pkey_free, [key as usize, 0, 0, 0, 0]), "pkey_free");
    }
    assert!(c > b, "the keys are given in order");
}

fn pkru() -> u32 {
    let value: u32;
    // SAFETY: only called where the processor has protection keys.
    unsafe { std::arch::asm!(".byte 0x0f, 0x01, 0xee", in("ecx") 0, out("eax") value, out("edx") _) };
    value
}

fn readings(readable: &[usize], other: &Other) -> Vec<String> {
    let mut all = vec![format!("policies {} | {}", policy(0), other.tells())];
    all.extend([66, 42, 68].map(|option| format!("prctl {option}: {}", prctl(option, [0; 4]))));
    let mut ldt = vec![0u64; 8192];
    let got = raw(libc::SYS_modify_ldt, [0, ldt.as_mut_ptr() as usize, 65536, 0, 0]);
    let used = ldt.iter().enumerate().filter(|(_, entry)| **entry != 0);
    all.push(format!("ldt {got} {:x?}", used.collect::<Vec<_>>()));
    all.extend(readable.iter().map(|addr| format!("{addr:x}: {:x}, policy {}", sum(*addr), policy(*addr))));
    all.extend((0..10).map(|slot| format!("policy {}", policy(AT + slot * SLOT + LEN / 2))));
    all.extend(smaps());
    if has_keys() {
        all.push(format!("pkru {:#x}", pkru()));
    }
    all
}

/// The mappings of ours, with their flags and keys.
fn smaps() -> Vec<String> {
    let text = fs::read("/proc/self/smaps").expect("smaps");
    let (mut all, mut own) = (Vec::new(), false);
    for line in text.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let first = line.split(['-', ' ']).next().unwrap_or_default();
        if let Ok(start) = usize::from_str_radix(first, 16)
            && line.contains('-')
        {
            own = (AT..AT + 100 * SLOT).contains(&start);
        }
        if own && (line.starts_with("53") || line.starts_with("VmFlags") || line.starts_with("ProtectionKey"))
        {
            // Whether it is accounted for depends on when it was written, and follows from nothing that can be read.
            all.push(format!("{} {}", all.len(), line.replace(" ac", "")));
        }
    }
    all
}

/// What can be tried once only.
fn tried() -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |what: &str, got: i64, want: i32| {
        if got != -i64::from(want) {
            wrong.push(format!("{what}: {got}, not {}", -want));
        }
    };
    expect("a sealed mapping", raw(libc::SYS_mprotect, [AT + SLOT, PAGE, 1, 0, 0]), libc::EPERM);
    expect("its neighbour", raw(libc::SYS_mprotect, [AT + SLOT + LEN / 2, PAGE, 1, 0, 0]), 0);
    let gains = raw(libc::SYS_mprotect, [AT + 2 * SLOT, PAGE, 5, 0, 0]);
    expect("memory that becomes executable", gains, libc::EACCES);
    if has_keys() {
        let next = [0, 0].map(|rights| raw(libc::SYS_pkey_alloc, [0, rights, 0, 0, 0]));
        // Freed were the one of the first allocation and the last.
        if next[0] <= 0 || next[1] <= next[0] {
            wrong.push(format!("the next keys: {next:?}"));
        }
    }
    wrong
}

/// Limits that leave no room for data, and hardly any for other mappings.
fn limits() {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let kib = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a field");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    for (which, bytes) in
        [(libc::RLIMIT_DATA, kib("VmData:") << 10), (libc::RLIMIT_AS, (kib("VmSize:") + 1024) << 10)]
    {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: a structure that lives across the call.
        ok(unsafe { libc::setrlimit(which, &limit) }.into(), "setrlimit");
    }
}

fn limited() -> Vec<String> {
    let all = fs::read_to_string("/proc/self/limits").expect("limits");
    all.lines().map(str::to_owned).collect()
}

fn more_data() -> Vec<String> {
    // SAFETY: a new mapping.
    let got = unsafe { libc::mmap(std::ptr::null_mut(), 1 << 20, RW, ANON, -1, 0) };
    if got == libc::MAP_FAILED { Vec::new() } else { vec!["there is room for data".to_owned()] }
}

/// Has so many mappings in all: every second page of a range may be written.
fn mappings(count: usize) {
    let now = maps();
    let pages = count - now;
    let start = map(0, pages * PAGE, libc::PROT_READ, ANON | libc::MAP_NORESERVE, -1);
    for page in (1..pages).step_by(2) {
        ok(raw(libc::SYS_mprotect, [start + page * PAGE, PAGE, RW as usize, 0, 0]), "mprotect");
    }
}

fn maps() -> usize {
    let text = fs::read("/proc/self/maps").expect("maps");
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// Those of the range: others may be one mapping in a copy that were two, as they differ in what is accounted for.
fn own_maps() -> usize {
    let text = fs::read("/proc/self/maps").expect("maps");
    text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"5300")).count()
}

/// A program in memory, held by its first descriptor and mapped from it, and another held by a second one too.
fn memfds() -> [c_int; 2] {
    let program = fs::read("/bin/true").expect("a program");
    [c"first", c"second"].map(|name| {
        // SAFETY: a name that lives across the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), 0) };
        let path = format!("/proc/self/fd/{fd}");
        fs::write(&path, &program).expect("a memfd");
        if name == c"first" {
            map(0, PAGE, RW, libc::MAP_SHARED, fd);
            // SAFETY: our own descriptor.
            ok(unsafe { libc::lseek(fd, 77, libc::SEEK_SET) }, "lseek");
            // SAFETY: the same.
            ok(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND) }.into(), "F_SETFL");
        } else {
            let again = fs::File::options().read(true).write(true).open(&path).expect("a memfd");
            std::mem::forget(again);
        }
        fd
    })
}

/// How the descriptors stand, and whether what they hold can be executed.
fn executed(fds: &[c_int]) -> Vec<String> {
    let tell = |fd: &c_int| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
        let info: Vec<_> = info.lines().take(2).map(str::to_owned).collect();
        format!("{fd}: {info:?}, executed: {}", execute(*fd))
    };
    fds.iter().map(tell).collect()
}

/// Executes what a descriptor holds in a child: its exit code, or 100 and the error.
fn execute(fd: c_int) -> i32 {
    let argv = [c"true".as_ptr(), std::ptr::null()];
    // SAFETY: the child only executes, or ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::fexecve(fd, argv.as_ptr(), argv[1..].as_ptr());
            libc::_exit(100 + *libc::__errno_location());
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        libc::WEXITSTATUS(status)
    }
}

/// A name that is no text, and mapped files whose names are alike in maps.
fn names() {
    fs::write("/proc/self/comm", b"\xff\xfe a)\\\n").expect("comm");
    for (slot, name) in [&b"a\nb"[..], b"a\\012b", b"\xff\\012\n"].into_iter().enumerate() {
        let content: Vec<u8> = (0..LEN).map(|i| (i / 3) as u8 ^ slot as u8).collect();
        fs::write(OsStr::from_bytes(name), content).expect("a file");
        let file = fs::File::open(OsStr::from_bytes(name)).expect("a file");
        map(slot, LEN, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd());
    }
}

fn named() -> Vec<String> {
    let comm = fs::read("/proc/self/comm").expect("comm");
    let exe = fs::read_link("/proc/self/exe").expect("exe").into_os_string().into_vec();
    let mut all = vec![format!("comm {}", comm.escape_ascii()), format!("exe {}", exe.escape_ascii())];
    all.extend((0..3).map(|slot| {
        let start = AT + slot * SLOT;
        let link =
            fs::read_link(format!("/proc/self/map_files/{start:x}-{:x}", start + LEN)).expect("a link");
        format!("{}: {:x}", link.into_os_string().into_vec().escape_ascii(), sum(start))
    }));
    all
}

/// Memory that nobody else can read.
fn secret() {
    let fd = ok(raw(SYS_MEMFD_SECRET, [0; 5]), "memfd_secret") as c_int;
    // SAFETY: our own descriptor.
    ok(unsafe { libc::ftruncate(fd, LEN as i64) }.into(), "ftruncate");
    map(0, LEN, RW, libc::MAP_SHARED, fd);
}

/// A thread that goes round in 32-bit code.
fn compat() {
    let low = 0x1_0000_0000usize - (1 << 24);
    let prot = RW | libc::PROT_EXEC;
    // SAFETY: a new mapping, into which a jump to itself is written.
    unsafe {
        let got = libc::mmap(low as *mut c_void, PAGE, prot, ANON | libc::MAP_FIXED_NOREPLACE, -1, 0);
        assert_eq!(got as usize, low);
        std::ptr::copy_nonoverlapping([0xebu8, 0xfe].as_ptr(), got.cast(), 2);
    }
    std::thread::spawn(move || {
        // SAFETY: it never comes back.
        unsafe { std::arch::asm!("push 0x23", "push {}", "retfq", in(reg) low, options(noreturn)) };
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
}

fn main() -> ExitCode {
    // The heap has room for all readings from the beginning.
    // SAFETY: nothing else runs yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TOP_PAD, 16 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::close_range(3, u32::MAX, 0);
    }
    drop(std::hint::black_box(vec![0u8; 8 << 20]));
    // Its own name need not be text.
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.into_string().expect("text")).collect();
    let [report, folder, what, rest @ ..] = &args[..] else {
        panic!("usage: guest-memory REPORT FOLDER WHAT [COUNT]")
    };
    std::env::set_current_dir(folder).expect("the folder");
    match what.as_str() {
        "settings" => {
            let other = Other::start();
            let readable = settings();
            asked_twice(report, || readings(&readable, &other), tried)
        }
        "limits" => {
            limits();
            asked_twice(report, limited, more_data)
        }
        "mappings" => {
            mappings(rest[0].parse().expect("a number"));
            asked_twice(report, || vec![own_maps().to_string()], Vec::new)
        }
        "memfd" => {
            let fds = memfds();
            asked_twice(report, || executed(&fds), Vec::new)
        }
        "names" => {
            names();
            asked_twice(report, named, Vec::new)
        }
        "secret" | "compat" => {
            if what == "secret" {
                secret()
            } else {
                compat()
            }
            asked_twice(report, Vec::new, Vec::new)
        }
        other => panic!("{other} is not known"),
    }
}
