//! Descriptors and the open file descriptions behind them.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use pc_image::{Fd, FdTable, FdTableId, OpenFile, OpenFileId, OpenFileKind, Owner, Record, rules};
use pc_sys::fcntl::{self, OwnerEx};
use pc_sys::{kcmp, pidfd};

use crate::error::{CaptureError, Context, Result, Unsupported, unsupported};
use crate::file::Files;
use crate::procfs::{FdInfo, Status, shown};
use crate::socket::{self, Sockets};
use crate::sockopts::Unusual;
use crate::tcp::Connected;
use crate::{
    epoll, eventfd, external, inet, pipe, procfile, regular, shared_port, shm, signalfd, timerfd, unix,
};

/// A descriptor as /proc shows it.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub fd: i32,
    /// Where the link of /proc/PID/fd points: a path, or `kind:[number]`.
    pub link: Vec<u8>,
    pub meta: Metadata,
    pub info: FdInfo,
    /// Who gets the signals of signal-driven I/O, and which; not of one that stands for a place alone.
    signals: Option<(OwnerEx, i32)>,
    /// Its open file description.
    pub file: OpenFileId,
}

impl Descriptor {
    /// Status flags as `F_GETFL` gives them.
    pub fn flags(&self) -> u32 {
        self.info.flags & !(libc::O_CLOEXEC as u32)
    }

    /// A lock, or a file without a name: cannot be moved whatever else the descriptor is.
    pub fn refusal(&self, pid: i32) -> Option<Unsupported> {
        let (link, fd) = (self.link_text(), Some(self.fd));
        if let Some(lock) = self.info.locks.first() {
            let what = format!("{link} with a lock or lease ({lock}), which cannot be moved yet");
            return Some(Unsupported::new(pid, fd, what));
        }
        let nameless = self.meta.is_file() && self.meta.nlink() == 0 && !link.starts_with("/memfd:");
        nameless.then(|| Unsupported::new(pid, fd, crate::file::removed(&link)))
    }

    /// Opened for reading alone.
    pub fn reads(&self) -> bool {
        self.flags() & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32
    }

    /// Opened with `O_PATH`: it stands for a place, whatever is there.
    pub fn is_path_only(&self) -> bool {
        self.flags() & libc::O_PATH as u32 != 0
    }

    /// A socket, not the file by which one is reached.
    fn is_socket(&self) -> bool {
        !self.is_path_only() && self.meta.file_type().is_socket()
    }

    pub fn link_text(&self) -> String {
        shown(&self.link)
    }
}

/// What earlier looks at the descriptors of a process have found.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    outside: pipe::Outside,
    /// The numbers of the descriptors in the order in which those that share a description are neighbours.
    order: Vec<i32>,
}

impl Seen {
    /// The numbers of the descriptors that the last look has found, ascending.
    pub fn numbers(&self) -> Vec<i32> {
        let mut numbers = self.order.clone();
        numbers.sort_unstable();
        numbers
    }
}

/// What the kinds need to capture a descriptor.
pub(crate) struct Fds<'a> {
    pub pid: i32,
    pub pidfd: BorrowedFd<'a>,
    pub files: &'a mut Files,
    /// What becomes of connected TCP sockets.
    pub connected: Connected,
    /// Those that were read, with their own addresses.
    pub taken: Vec<(OwnedFd, IpAddr)>,
    /// The process is stopped: contents of pipes and queues are read too.
    pub stopped: bool,
    pub all: Vec<Descriptor>,
    pub pipes: pipe::Pipes,
    pub outside: &'a pipe::Outside,
    pub externals: external::Names,
    pub sockets: Sockets,
    /// Options of sockets that were read before their turn, by descriptor.
    unusual: HashMap<i32, Unusual>,
}

/// The descriptors of a process, as records.
#[derive(Debug)]
pub(crate) struct Captured {
    pub table: FdTable,
    pub files: Vec<OpenFile>,
    /// What is to be said of them beside.
    pub beside: Vec<Record>,
    /// What cannot be rebuilt.
    pub unsupported: Vec<Unsupported>,
    /// What people should know.
    pub notices: Vec<String>,
    /// TCP connections that were read, with their own addresses.
    pub taken: Vec<(OwnedFd, IpAddr)>,
}

impl<'a> Fds<'a> {
    /// Finds which of the descriptors share a description.
    pub fn of(
        pid: i32,
        pidfd: BorrowedFd<'a>,
        files: &'a mut Files,
        Seen { outside, order }: &'a mut Seen,
        connected: Connected,
        stopped: bool,
        mut all: Vec<Descriptor>,
    ) -> Result<Self> {
        *order = identify_open(pid, &mut all, order, stopped)?;
        let pipes = pipe::Pipes::find(&all);
        if !stopped {
            outside.look(pid, &all);
        }
        let (taken, unusual, externals) = (Vec::new(), HashMap::new(), external::Names::default());
        let sockets = Sockets::of(pid)?;
        Ok(Self {
            pid,
            pidfd,
            files,
            connected,
            taken,
            stopped,
            all,
            pipes,
            outside,
            externals,
            sockets,
            unusual,
        })
    }

    /// Captures all of them. Goes on after what is unsupported, so that all of it is named.
    pub fn capture(&mut self, id: FdTableId) -> Result<Captured> {
        let all = std::mem::take(&mut self.all);
        self.unusual = self.look_at_sockets(&all);
        let table = FdTable { id, fds: Vec::new() };
        let (files, beside, unsupported, taken) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut captured = Captured { table, files, beside, unsupported, notices: Vec::new(), taken };
        let mut next = 0;
        for descriptor in &all {
            let cloexec = descriptor.info.flags & libc::O_CLOEXEC as u32 != 0;
            captured.table.fds.push(Fd { fd: descriptor.fd as u32, file: descriptor.file, cloexec });
            // Descriptions are numbered in the order of their lowest descriptors.
            if descriptor.file.0 < next {
                continue;
            }
            next = descriptor.file.0 + 1;
            match self.open_file(descriptor, &all) {
                Ok(file) => captured.files.push(file),
                Err(CaptureError::Unsupported(list)) => captured.unsupported.extend(list),
                // A running process closes descriptors while we look.
                Err(_) if !self.stopped && !still_there(self.pid, descriptor) => {}
                Err(other) => return Err(other),
            }
        }
        captured.unsupported.extend(self.share_ports(&all, &captured.files));
        captured.beside.extend(self.sockets.states.drain(..).map(Record::SocketState));
        captured.beside.extend(self.sockets.queues.drain(..).map(Record::Queue));
        self.all = all;
        captured.notices = std::mem::take(&mut self.sockets.notices);
        captured.taken = std::mem::take(&mut self.taken);
        Ok(captured)
    }

    /// Lets sockets have one port together again. Names those that cannot.
    fn share_ports(&mut self, all: &[Descriptor], files: &[OpenFile]) -> Vec<Unsupported> {
        let unclear = shared_port::share(files, &mut self.sockets.states).into_iter();
        let named = unclear.map(|(file, local)| Unsupported {
            pid: self.pid,
            fd: all.iter().find(|descriptor| descriptor.file == file).map(|descriptor| descriptor.fd),
            mapping: None,
            what: format!(
                "a UDP socket that shares {local} with another without SO_REUSEPORT or SO_REUSEADDR on both, which cannot be moved yet"
            ),
        });
        named.collect()
    }

    fn open_file(&mut self, descriptor: &Descriptor, all: &[Descriptor]) -> Result<OpenFile> {
        if !descriptor.info.locks.is_empty()
            && let Some(refusal) = descriptor.refusal(self.pid)
        {
            return Err(CaptureError::Unsupported(vec![refusal]));
        }
        let kind = self.kind(descriptor, all)?;
        let owner = self.owner(descriptor)?;
        let file = OpenFile { id: descriptor.file, flags: descriptor.flags(), owner, kind };
        match rules::open_file(&file) {
            None => Ok(file),
            Some(why) => self.refuse(descriptor, why),
        }
    }

    fn kind(&mut self, descriptor: &Descriptor, all: &[Descriptor]) -> Result<OpenFileKind> {
        let kind = descriptor.meta.file_type();
        let link = descriptor.link.as_slice();
        if descriptor.is_path_only() {
            return self.by_path(descriptor);
        }
        if descriptor.is_socket() {
            return self.socket(descriptor);
        }
        if kind.is_fifo() {
            return pipe::capture(self, descriptor, all);
        }
        if let Some(name) = link.strip_prefix(b"anon_inode:") {
            return self.anonymous(descriptor, name, all);
        }
        if external::is_terminal(descriptor) {
            return Ok(external::terminal(self, descriptor));
        }
        if self.files.objects.is_open_as(descriptor) {
            return shm::capture(self, descriptor);
        }
        self.by_path(descriptor)
    }

    fn by_path(&mut self, descriptor: &Descriptor) -> Result<OpenFileKind> {
        if self.files.is_procfs(descriptor) {
            return procfile::capture(self, descriptor);
        }
        regular::capture(self, descriptor)
    }

    fn anonymous(
        &mut self,
        descriptor: &Descriptor,
        name: &[u8],
        all: &[Descriptor],
    ) -> Result<OpenFileKind> {
        match name {
            b"[eventfd]" => eventfd::capture(self, descriptor),
            b"[eventpoll]" => epoll::capture(self, descriptor, all),
            b"[timerfd]" => timerfd::capture(self, descriptor),
            b"[signalfd]" => signalfd::capture(self, descriptor),
            other => {
                let name = String::from_utf8_lossy(other);
                let name = name.trim_matches(['[', ']']);
                self.refuse(descriptor, format!("{}, which cannot be moved yet", known_as(name)))
            }
        }
    }

    fn socket(&mut self, descriptor: &Descriptor) -> Result<OpenFileKind> {
        let socket = self.take(descriptor.fd)?;
        let unusual = match self.unusual.remove(&descriptor.fd) {
            Some(unusual) => unusual,
            None => {
                socket::unusual(&self.sockets.usual, socket.as_fd()).of(self.pid, "looking at a socket")?
            }
        };
        match unusual.class.family {
            libc::AF_INET | libc::AF_INET6 => inet::capture(self, descriptor, socket.as_fd(), &unusual),
            libc::AF_UNIX => unix::capture(self, descriptor, socket.as_fd(), &unusual),
            other => self.refuse(
                descriptor,
                format!("a socket of the family {}, which cannot be moved yet", family_name(other)),
            ),
        }
    }

    /// Reads the options of all sockets, each by its lowest descriptor, of many by several threads.
    fn look_at_sockets(&self, all: &[Descriptor]) -> HashMap<i32, Unusual> {
        let mut files = HashSet::new();
        let lowest = all.iter().filter(|d| d.is_socket() && files.insert(d.file.0));
        let sockets: Vec<i32> = lowest.map(|d| d.fd).collect();
        let look = |fd: &i32| {
            // One that cannot be looked at is looked at again when its turn comes, which says why.
            let socket = self.take(*fd).ok()?;
            Some((*fd, socket::unusual(&self.sockets.usual, socket.as_fd()).ok()?))
        };
        let found =
            by_shares(sockets.len(), |share| sockets[share].iter().filter_map(look).collect::<Vec<_>>());
        found.into_iter().flatten().collect()
    }

    /// Duplicates a descriptor of the process into this one.
    pub fn take(&self, fd: i32) -> Result<OwnedFd> {
        pidfd::pidfd_getfd(self.pidfd, fd).of(self.pid, format_args!("looking at its descriptor {fd}"))
    }

    /// Says that a descriptor cannot be moved.
    pub fn refuse<T>(&self, descriptor: &Descriptor, what: String) -> Result<T> {
        unsupported(self.pid, Some(descriptor.fd), what)
    }

    /// Who gets the signals of signal-driven I/O, which may be set before that is on.
    fn owner(&self, descriptor: &Descriptor) -> Result<Option<Owner>> {
        let Some((owner, signal)) = descriptor.signals else { return Ok(None) };
        if owner.pid == 0 {
            return Ok((signal != 0).then_some(Owner { kind: owner.kind, pid: 0, signal }));
        }
        if descriptor.meta.is_dir() {
            // Directories have an owner by F_NOTIFY, and nothing else shows that.
            let what = format!("{}, whose changes are notified of (F_NOTIFY)", descriptor.link_text());
            return self.refuse(descriptor, what + ", which cannot be moved");
        }
        let Some(pid) = self.own_id(owner) else {
            let whom = match owner.kind {
                F_OWNER_TID => "thread",
                F_OWNER_PID => "process",
                _ => "process group",
            };
            let what = format!("{}, whose signals go to {whom} {}", descriptor.link_text(), owner.pid);
            return self.refuse(descriptor, what + " (F_SETOWN), which is not moved with it");
        };
        Ok(Some(Owner { kind: owner.kind, pid, signal }))
    }

    /// The id of the process, one of its threads or the group that it leads in its own pid namespace; none for a stranger's.
    fn own_id(&self, owner: OwnerEx) -> Option<u32> {
        let own = match owner.kind {
            F_OWNER_TID => std::path::Path::new(&format!("/proc/{}/task/{}", self.pid, owner.pid)).exists(),
            _ => owner.pid == self.pid,
        };
        let id = own.then(|| Status::read(owner.pid).ok()).flatten()?.own_pid();
        u32::try_from(id).ok().filter(|id| *id != 0)
    }
}

const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;

fn known_as(name: &str) -> String {
    match name {
        "io_uring" => "an io_uring instance".to_owned(),
        "userfaultfd" => "a userfaultfd".to_owned(),
        "inotify" => "an inotify instance".to_owned(),
        "fanotify" => "a fanotify instance".to_owned(),
        "perf_event" => "a perf event".to_owned(),
        "pidfd" => "a pidfd".to_owned(),
        "kvm-vm" | "kvm-vcpu" => "a KVM virtual machine".to_owned(),
        _ if name.starts_with("bpf") => format!("an eBPF object ({name})"),
        _ => format!("of the kind {name}"),
    }
}

fn family_name(family: i32) -> String {
    match family {
        libc::AF_NETLINK => "netlink".to_owned(),
        libc::AF_PACKET => "packet".to_owned(),
        libc::AF_VSOCK => "vsock".to_owned(),
        libc::AF_ALG => "alg".to_owned(),
        libc::AF_XDP => "XDP".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a description lets devices write into the process's memory unseen by its page tables.
pub(crate) fn is_direct_io(file: &OpenFile) -> bool {
    file.flags & libc::O_DIRECT as u32 != 0 && matches!(file.kind, OpenFileKind::Regular(_))
}

/// Whether the process has such a descriptor now; a pipe in packet mode, which has the same flag, is none.
pub(crate) fn uses_direct_io(pid: i32) -> Result<bool> {
    for fd in numbers(pid)? {
        // One that was closed meanwhile is seen by neither.
        let direct = FdInfo::read(pid, fd).is_ok_and(|info| info.flags & libc::O_DIRECT as u32 != 0);
        if direct && std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|m| !m.file_type().is_fifo())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn still_there(pid: i32, descriptor: &Descriptor) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/{}", descriptor.fd))
        .is_ok_and(|link| link.as_os_str() == OsStr::from_bytes(&descriptor.link))
}

/// Reads what /proc shows of each descriptor of a stopped process, ascending. `before` has the numbers that an earlier look
/// found: if they are still the same, the descriptors are not listed again, which would take a tenth of the time.
pub(crate) fn descriptors_again(pid: i32, before: &[i32]) -> Result<Vec<Descriptor>> {
    if is_count(pid, before.len())
        && let Ok(found) = look_at(pid, true, before)
    {
        return Ok(found);
    }
    descriptors(pid, true)
}

/// Whether a process has this many descriptors; `false` where the kernel does not say it (before Linux 6.2, see
/// proc_pid_fd(5)).
fn is_count(pid: i32, count: usize) -> bool {
    count > 0 && std::fs::metadata(format!("/proc/{pid}/fd")).is_ok_and(|meta| meta.len() == count as u64)
}

/// Reads what /proc shows of each descriptor, ascending.
pub(crate) fn descriptors(pid: i32, stopped: bool) -> Result<Vec<Descriptor>> {
    look_at(pid, stopped, &numbers(pid)?)
}

/// Reads what /proc shows of the descriptors with these numbers. Of many by several threads: 15 µs each count at the stop.
fn look_at(pid: i32, stopped: bool, numbers: &[i32]) -> Result<Vec<Descriptor>> {
    let look = Look::at(pid, stopped).of(pid, "looking at its descriptors")?;
    let found = by_shares(numbers.len(), |share| look.all(&numbers[share]));
    let mut all = Vec::with_capacity(numbers.len());
    for some in found {
        all.extend(some?);
    }
    Ok(all)
}

/// The numbers of its descriptors, ascending.
pub(crate) fn numbers(pid: i32) -> Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).of(pid, "listing its descriptors")? {
        let entry = entry.of(pid, "listing its descriptors")?;
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Splits `count` items into shares, and works on each share in a thread of its own where there are many items. Gives the
/// results in order.
pub(crate) fn by_shares<T: Send>(count: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    const MANY: usize = 128;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4);
    let share = count.div_ceil(threads).max(MANY);
    let shares = (0..count).step_by(share).map(|from| from..(from + share).min(count));
    std::thread::scope(|scope| {
        let work = &work;
        let mut shares = shares;
        let own = shares.next();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
        let mut done: Vec<T> = own.map(work).into_iter().collect();
        done.extend(
            others.into_iter().map(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        done
    })
}

/// A look at the descriptors of a process.
struct Look {
    pid: i32,
    stopped: bool,
    pidfd: OwnedFd,
    /// Its folder of /proc, `fd` and `fdinfo`: they need not be looked for anew each time.
    links: OwnedFd,
    infos: OwnedFd,
    /// The device of the pipes without names.
    pipes: u64,
}

impl Look {
    fn at(pid: i32, stopped: bool) -> std::io::Result<Self> {
        let folder = |name: &str| File::open(format!("/proc/{pid}/{name}")).map(OwnedFd::from);
        let (reader, _) = std::io::pipe()?;
        let pipes = File::from(OwnedFd::from(reader)).metadata()?.dev();
        let pidfd = pidfd::pidfd_open(pid)?;
        Ok(Self { pid, stopped, pidfd, links: folder("fd")?, infos: folder("fdinfo")?, pipes })
    }

    /// Those with these numbers; one that a running process has closed meanwhile is left out.
    fn all(&self, numbers: &[i32]) -> Result<Vec<Descriptor>> {
        let mut all = Vec::with_capacity(numbers.len());
        let mut device = None;
        for &fd in numbers {
            match self.one(fd, &mut device) {
                Ok(found) => all.push(found),
                Err(err) if !self.stopped && is_closed(&err) => {}
                Err(err) => return Err(err).of(self.pid, format_args!("looking at its descriptor {fd}")),
            }
        }
        Ok(all)
    }

    fn one(&self, fd: i32, device: &mut Option<Device>) -> std::io::Result<Descriptor> {
        let number = fd.to_string();
        let info = FdInfo::read_at(self.infos.as_fd(), &number)?;
        let (meta, signals) = match pidfd::pidfd_getfd(self.pidfd.as_fd(), fd) {
            Ok(own) => {
                let signals = if info.flags & libc::O_PATH as u32 != 0 {
                    None
                } else {
                    Some((fcntl::getown_ex(own.as_fd())?, fcntl::getsig(own.as_fd())?))
                };
                (File::from(own).metadata()?, signals)
            }
            // Whoever may look may not always take.
            Err(err) if self.stopped || is_closed(&err) => return Err(err),
            Err(_) => (std::fs::metadata(format!("/proc/{}/fd/{fd}", self.pid))?, None),
        };
        let link = self.link(&number, &meta, &info, device)?;
        Ok(Descriptor { fd, link, meta, info, signals, file: OpenFileId(0) })
    }

    /// Where its link points, which is read only if nothing else shows it: it takes a fifth of the time of a look. Sockets and
    /// pipes without a name have none but their number, and /dev/null is often open many times, by one name if it has but one.
    fn link(
        &self,
        number: &str,
        meta: &Metadata,
        info: &FdInfo,
        last: &mut Option<Device>,
    ) -> std::io::Result<Vec<u8>> {
        let kind = meta.file_type();
        let is_path_only = info.flags & libc::O_PATH as u32 != 0;
        if kind.is_socket() && !is_path_only {
            return Ok(format!("socket:[{}]", meta.ino()).into_bytes());
        }
        if kind.is_fifo() && meta.dev() == self.pipes {
            return Ok(format!("pipe:[{}]", meta.ino()).into_bytes());
        }
        if let Some(link) = info.anonymous() {
            return Ok(link.as_bytes().to_vec());
        }
        let read = || nix::fcntl::readlinkat(&self.links, number).map(OsString::into_vec);
        let Some(mount) = info.mount.filter(|_| kind.is_char_device() && meta.nlink() == 1 && self.stopped)
        else {
            return Ok(read()?);
        };
        let node = (mount, meta.dev(), meta.ino());
        match last {
            Some(device) if device.node == node => Ok(device.link.clone()),
            _ => Ok(last.insert(Device { node, link: read()? }).link.clone()),
        }
    }
}

/// A device that a descriptor was open on, and the link of that.
struct Device {
    /// The number of the mount, the file system's device, and the inode.
    node: (u64, u64, u64),
    link: Vec<u8>,
}

/// Whether there is no such descriptor any more.
fn is_closed(err: &std::io::Error) -> bool {
    err.kind() == std::io::ErrorKind::NotFound || err.raw_os_error() == Some(libc::EBADF)
}

/// Numbers the open file descriptions; those that a running process has closed meanwhile are left out.
fn identify_open(pid: i32, all: &mut Vec<Descriptor>, before: &[i32], stopped: bool) -> Result<Vec<i32>> {
    // On a busy machine a look takes longer than a descriptor of a busy process lives.
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        match identify(pid, all, before) {
            Err(_) if !stopped => all.retain(|descriptor| still_there(pid, descriptor)),
            done => return done,
        }
    }
    identify(pid, all, before)
}

/// Numbers the open file descriptions. Only descriptors of the same inode can share one; these are put into the kernel's
/// own order (kcmp(2)), in which those that do are neighbours. Begins with the order in which they were `before`, which
/// holds as long as a description is open, and gives the order now.
fn identify(pid: i32, all: &mut [Descriptor], before: &[i32]) -> Result<Vec<i32>> {
    let places: HashMap<i32, usize> = before.iter().enumerate().map(|(at, fd)| (*fd, at)).collect();
    let place = |d: &Descriptor| places.get(&d.fd).copied().unwrap_or(usize::MAX);
    fn object(d: &Descriptor) -> (u64, u64, u32, &[u8]) {
        (d.meta.dev(), d.meta.ino(), d.flags(), &d.link)
    }
    let compare = |a: &Descriptor, b: &Descriptor| match object(a).cmp(&object(b)) {
        Ordering::Equal => kcmp::kcmp_file((pid, a.fd), (pid, b.fd)),
        other => Ok(other),
    };
    // A running process may have closed one of the two.
    let failed = |err| Err(err).of(pid, "comparing its descriptors");
    let mut order: Vec<usize> = (0..all.len()).collect();
    if all.iter().all(|descriptor| places.contains_key(&descriptor.fd)) {
        // Most often nothing has changed, which the neighbours tell.
        order.sort_by_cached_key(|&at| place(&all[at]));
    } else {
        order.sort_by(|&a, &b| {
            object(&all[a]).cmp(&object(&all[b])).then_with(|| place(&all[a]).cmp(&place(&all[b])))
        });
    }
    let neighbours = |order: &[usize]| -> std::io::Result<Vec<Ordering>> {
        let pairs: Vec<_> = order.windows(2).collect();
        let compare = |pair: &&[usize]| compare(&all[pair[0]], &all[pair[1]]);
        let found = by_shares(pairs.len(), |share| {
            pairs[share].iter().map(compare).collect::<std::io::Result<Vec<_>>>()
        });
        Ok(found.into_iter().collect::<std::io::Result<Vec<_>>>()?.concat())
    };
    let mut found = match neighbours(&order) {
        Err(err) => return failed(err),
        Ok(found) => found,
    };
    if found.contains(&Ordering::Greater) {
        let mut failure = None;
        order.sort_by(|&a, &b| {
            compare(&all[a], &all[b]).unwrap_or_else(|err| {
                failure = Some(err);
                Ordering::Equal
            })
        });
        found = match failure.map_or_else(|| neighbours(&order), Err) {
            Err(err) => return failed(err),
            Ok(found) => found,
        };
    }
    // The lowest descriptor of each description gives it its number, so that the numbers ascend with the descriptors.
    let mut first: Vec<usize> = (0..all.len()).collect();
    let mut begin = 0;
    for end in 1..=order.len() {
        if found.get(end - 1) == Some(&Ordering::Equal) {
            continue;
        }
        let same = &order[begin..end];
        let lowest = same.iter().copied().min().unwrap_or_default();
        same.iter().for_each(|&at| first[at] = lowest);
        begin = end;
    }
    let mut next = 0;
    for at in 0..all.len() {
        if first[at] == at {
            all[at].file = OpenFileId(next);
            next += 1;
        } else {
            all[at].file = all[first[at]].file;
        }
    }
    Ok(order.into_iter().map(|at| all[at].fd).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn descriptors_that_are_others_than_before_are_found_though_there_are_as_many() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        // Until it sleeps, it opens and closes files.
        let sleeps = format!("{} ", libc::SYS_clock_nanosleep);
        while !std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with(&sleeps) {
            std::thread::yield_now();
        }
        let fds = |found: Vec<Descriptor>| found.iter().map(|d| d.fd).collect::<Vec<_>>();
        let all = fds(descriptors(pid, true).unwrap());
        let mut others = all.clone();
        others[1] = 777;
        let befores = [&all[..], &others, &all[1..], &[]];
        let found = befores.map(|before| descriptors_again(pid, before).map(fds));
        child.kill().unwrap();
        child.wait().unwrap();
        for found in found {
            assert_eq!(found.unwrap(), all);
        }
    }
}
