//! A process with descriptors of every kind, which reads them back after a move and then uses them.
//!
//! `guest-fds REPORT FOLDER`: see `pc_tests::guest`. Works in FOLDER.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::ExitCode;

use libc::c_int;

fn ok(got: c_int, what: &str) -> c_int {
    assert!(got >= 0, "{what}: {}", Error::last_os_error());
    got
}

/// Puts a descriptor under a number of its own.
fn keep(fd: impl Into<OwnedFd>, number: RawFd, cloexec: bool) -> RawFd {
    let fd: OwnedFd = fd.into();
    // SAFETY: two numbers and a flag; `number` is free.
    ok(unsafe { libc::dup3(fd.as_raw_fd(), number, if cloexec { libc::O_CLOEXEC } else { 0 }) }, "dup3")
}

fn pipe(flags: c_int) -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which are then owned once.
    unsafe {
        ok(libc::pipe2(fds.as_mut_ptr(), flags), "pipe");
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

fn write(fd: RawFd, bytes: &[u8]) {
    // SAFETY: as many bytes as there are.
    let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(n, bytes.len() as isize, "writing to {fd}: {}", Error::last_os_error());
}

fn read(fd: RawFd) -> Vec<u8> {
    let mut bytes = vec![0u8; 100_000];
    // SAFETY: as many bytes as there is room for.
    let n = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes.truncate(usize::try_from(n).unwrap_or(0));
    bytes
}

fn owned(fd: c_int, what: &str) -> OwnedFd {
    // SAFETY: a descriptor that the kernel has just made.
    unsafe { OwnedFd::from_raw_fd(ok(fd, what)) }
}

const NUMBERS: std::ops::Range<RawFd> = 20..1000;

/// Makes all of them, under fixed numbers.
fn files() {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let mut plain = options.open("plain").expect("a file");
    plain.write_all(&[b'a'; 5000]).expect("written");
    plain.seek(std::io::SeekFrom::Start(1234)).expect("sought");
    keep(plain.try_clone().expect("a duplicate"), 21, false);
    keep(plain, 20, true);
    keep(OpenOptions::new().append(true).open("plain").expect("a file"), 22, true);
    keep(File::open("plain").expect("a file"), 23, true);
    let path_only =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOATIME).open("plain");
    keep(path_only.expect("a file"), 24, true);
    let dir = File::open(".").expect("a folder");
    keep(dir, 25, true);
    for (number, name) in [(26, "/dev/null"), (27, "/dev/zero"), (28, "/dev/urandom")] {
        keep(options.clone().create(false).truncate(false).open(name).expect(name), number, false);
    }
    // The number under which a husk keeps its socket, and neighbours.
    for number in 899..902 {
        keep(File::open("plain").expect("a file"), number, number == 900);
    }
}

fn pipes_and_events() {
    let (from, to) = pipe(libc::O_CLOEXEC);
    write(to.as_raw_fd(), &[b'p'; 70_000][..60_000]);
    // SAFETY: a number.
    ok(unsafe { libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 18) }, "F_SETPIPE_SZ");
    keep(from, 30, true);
    keep(to, 31, false);
    let (from, to) = pipe(libc::O_DIRECT | libc::O_NONBLOCK);
    [&b"one"[..], b"three", b"seven"].iter().for_each(|packet| write(to.as_raw_fd(), packet));
    keep(from, 32, true);
    keep(to, 33, true);
    // SAFETY: plain calls that make a descriptor.
    unsafe {
        keep(owned(libc::eventfd(7, libc::EFD_NONBLOCK), "eventfd"), 34, true);
        keep(owned(libc::eventfd(3, libc::EFD_SEMAPHORE), "eventfd"), 35, true);
        let timer = owned(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK), "timerfd");
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let far = libc::timespec { tv_sec: 7000, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: far, it_value: far };
        libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut());
        keep(timer, 36, true);
        let gone = owned(libc::timerfd_create(libc::CLOCK_BOOTTIME, 0), "timerfd");
        let near = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        let spec = libc::itimerspec { it_interval: zero, it_value: near };
        libc::timerfd_settime(gone.as_raw_fd(), 0, &spec, std::ptr::null_mut());
        keep(gone, 37, true);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::sigaddset(&mut set, libc::SIGRTMIN() + 7);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        keep(owned(libc::signalfd(-1, &set, libc::SFD_NONBLOCK), "signalfd"), 38, true);
        let value = libc::sigval { sival_ptr: 99 as *mut _ };
        libc::sigqueue(libc::getpid(), libc::SIGRTMIN() + 7, value);
        let epoll = owned(libc::epoll_create1(0), "epoll");
        let watched = [
            (30, libc::EPOLLIN, 0x3333_0000_1111u64),
            (34, libc::EPOLLIN | libc::EPOLLET, 2),
            (36, libc::EPOLLIN, 3),
        ];
        for (fd, events, u64) in watched {
            let mut event = libc::epoll_event { events: events as u32, u64 };
            ok(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event), "epoll_ctl");
        }
        keep(epoll, 39, true);
    }
}

fn set(fd: RawFd, level: c_int, name: c_int, value: c_int) {
    let at = std::ptr::from_ref(&value).cast();
    // SAFETY: an option of four bytes.
    ok(unsafe { libc::setsockopt(fd, level, name, at, 4) }, "setsockopt");
}

fn sockets() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    set(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77);
    keep(listener, 40, true);
    // SAFETY: makes a descriptor.
    let fresh = owned(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_STREAM, 0) }, "socket");
    set(fresh.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    set(fresh.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 30_000);
    set(fresh.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    keep(fresh, 41, false);
    let bound = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    bound.set_broadcast(true).expect("an option");
    let connected = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    connected.connect(bound.local_addr().expect("an address")).expect("connected");
    keep(bound, 42, true);
    keep(connected, 43, true);
    let listener =
        UnixListener::bind(std::env::current_dir().expect("a folder").join("socket")).expect("a socket");
    keep(listener, 44, true);
    keep(UnixDatagram::unbound().expect("a socket"), 45, true);
    let name = format!("pc-tests guest-fds {}", std::process::id());
    let name =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    keep(UnixDatagram::bind_addr(&name.expect("a name")).expect("a socket"), 46, true);
}

/// What /proc and the sockets tell.
fn readings() -> Vec<String> {
    let mut all = Vec::new();
    let open =
        NUMBERS.filter_map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).ok().map(|link| (fd, link)));
    for (fd, link) in open {
        let link = link.display().to_string();
        let kind = link.split_once(":[").map_or(link.as_str(), |(kind, _)| kind);
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
        let mut lines: Vec<String> = info.lines().filter_map(shown).collect();
        lines.sort_unstable();
        all.push(format!("{fd} {kind} {}", lines.join(", ")));
        if kind == "socket" {
            all.push(format!("{fd} {}", options(fd)));
        }
    }
    for (a, b) in [(20, 21), (20, 22), (30, 31)] {
        // SAFETY: kcmp compares two descriptors of this process.
        let pid = unsafe { libc::getpid() };
        // SAFETY: as above; 0 is KCMP_FILE.
        let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, 0, a, b) };
        all.push(format!("{a} and {b} are one: {}", order == 0));
    }
    // SAFETY: asks for a pipe's size.
    all.push(format!("pipe of {}", unsafe { libc::fcntl(30, libc::F_GETPIPE_SZ) }));
    all
}

/// A line of fdinfo, without what is another at each moment or machine.
fn shown(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[0] {
        "ino:" | "mnt_id:" | "eventfd-id:" => None,
        "it_value:" => Some(format!(
            "{} left",
            words[1].trim_start_matches('(').trim_end_matches(',').parse::<u64>().ok()? / 100
        )),
        // Numbers of inodes and places of what is watched.
        "tfd:" => Some(words[..6].join(" ")),
        _ => Some(words.join(" ")),
    }
}

fn options(fd: RawFd) -> String {
    let wanted = [
        (libc::SOL_SOCKET, libc::SO_DOMAIN),
        (libc::SOL_SOCKET, libc::SO_TYPE),
        (libc::SOL_SOCKET, libc::SO_REUSEADDR),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        (libc::SOL_SOCKET, libc::SO_BROADCAST),
        (libc::SOL_SOCKET, libc::SO_RCVBUF),
        (libc::SOL_SOCKET, libc::SO_SNDBUF),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    ];
    let mut text = String::new();
    for (level, name) in wanted {
        let (mut value, mut len) = (0i32, 4);
        let to = std::ptr::from_mut(&mut value).cast();
        // SAFETY: room for four bytes.
        let got = unsafe { libc::getsockopt(fd, level, name, to, &mut len) };
        text += &format!(" {level}/{name}={}", if got == 0 { value } else { -1 });
    }
    for ask in [libc::getsockname, libc::getpeername] {
        let (mut name, mut len) = ([0u8; 128], 128);
        // SAFETY: room for as many bytes as `len` says.
        let got = unsafe { ask(fd, name.as_mut_ptr().cast(), &mut len) };
        text += &format!(" {got} {:?}", &name[..if got == 0 { len as usize } else { 0 }]);
    }
    text
}

/// Takes a descriptor under its number.
fn taken<T: FromRawFd>(number: RawFd) -> T {
    // SAFETY: each number is taken once.
    unsafe { T::from_raw_fd(number) }
}

fn last() -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |good: bool, what: &str| {
        if !good {
            wrong.push(what.to_owned());
        }
    };
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
    // SAFETY: room for eight events.
    let n = unsafe { libc::epoll_wait(39, events.as_mut_ptr(), 8, 0) };
    let mut came: Vec<u64> = events.iter().take(n.max(0) as usize).map(|event| event.u64).collect();
    came.sort_unstable();
    check(came == [2, 0x3333_0000_1111], &format!("epoll gives {came:x?}"));
    check(read(30) == [b'p'; 60_000], "the content of a pipe");
    write(31, b"more");
    check(read(30) == b"more", "a pipe used again");
    check([read(32), read(32), read(32)] == [&b"one"[..], b"three", b"seven"], "packets of a pipe");
    check(read(34) == 7u64.to_ne_bytes(), "an eventfd");
    check([read(35), read(35)] == [1u64.to_ne_bytes(); 2], "an eventfd as a semaphore");
    check(read(36).is_empty(), "a timerfd that is not due");
    check(read(37) == 1u64.to_ne_bytes(), "a timerfd that had expired");
    let info = read(38);
    check(info.len() == 128 && info[..4] == (libc::SIGRTMIN() + 7).to_ne_bytes(), "a signalfd");
    let mut plain: File = taken(20);
    let mut rest = Vec::new();
    check(plain.read_to_end(&mut rest).is_ok_and(|n| n == 5000 - 1234), "a file's offset");
    check(taken::<File>(21).stream_position().is_ok_and(|at| at == 5000), "an offset that is shared");
    write(22, b"end");
    check(fs::read("plain").is_ok_and(|text| text.len() == 5003 && text.ends_with(b"end")), "appending");
    check(read(27).len() == 100_000 && !read(28).is_empty(), "devices");
    let (listener, bound, connected): (TcpListener, UdpSocket, UdpSocket) = (taken(40), taken(42), taken(43));
    let address: SocketAddr = listener.local_addr().expect("an address");
    check(TcpStream::connect(address).is_ok() && listener.accept().is_ok(), "a listening socket");
    let mut buf = [0; 16];
    check(
        connected.send(b"hello").is_ok() && bound.recv(&mut buf).is_ok_and(|n| &buf[..n] == b"hello"),
        "UDP",
    );
    let listener: UnixListener = taken(44);
    check(UnixStream::connect("socket").is_ok() && listener.accept().is_ok(), "a Unix socket that listens");
    let (sender, receiver): (UnixDatagram, UnixDatagram) = (taken(45), taken(46));
    let to = receiver.local_addr().expect("an address");
    check(
        sender.send_to_addr(b"hi", &to).is_ok() && receiver.recv(&mut buf).is_ok_and(|n| n == 2),
        "Unix datagrams",
    );
    let _ = plain.into_raw_fd();
    wrong
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, folder] = &args[..] else { panic!("usage: guest-fds REPORT FOLDER") };
    // SAFETY: nothing is open yet.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    std::env::set_current_dir(folder).expect("the folder");
    files();
    pipes_and_events();
    sockets();
    pc_tests::guest::asked_twice(report, readings, last)
}
