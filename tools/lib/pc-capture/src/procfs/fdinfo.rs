//! /proc/PID/fdinfo/FD: see proc_pid_fdinfo(5).

use std::fs::File;
use std::os::fd::BorrowedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// Time settings of a timerfd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimerInfo {
    /// Clock id.
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// `TFD_TIMER_*` as it was armed.
    pub settime_flags: u32,
    /// Nanoseconds left.
    pub value: u64,
    /// Interval in nanoseconds.
    pub interval: u64,
}

/// A file watched by an epoll instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatchInfo {
    /// The number under which it was added.
    pub fd: u32,
    /// `EPOLL*` bits.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Inode number of the file.
    pub inode: u64,
}

/// What the file shows, whatever the descriptor's kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// Offset in bytes.
    pub pos: u64,
    /// Access mode and status flags, `O_CLOEXEC` among them.
    pub flags: u32,
    /// Number of the mount, if the kernel gives it.
    pub mount: Option<u64>,
    /// Lines about locks and leases.
    pub locks: Vec<String>,
    /// eventfd: counter and `EFD_SEMAPHORE`.
    pub event: Option<(u64, bool)>,
    /// epoll.
    pub watches: Vec<WatchInfo>,
    /// timerfd.
    pub timer: Option<TimerInfo>,
    /// signalfd: the mask.
    pub sigmask: Option<u64>,
}

impl FdInfo {
    /// Parses the file; `None` if a line of a known kind is not understood.
    pub fn parse(text: &str) -> Option<Self> {
        let mut info = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            info.line(key.trim(), value.trim())?;
        }
        Some(info)
    }

    fn line(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "pos" => self.pos = value.parse::<i64>().ok()? as u64,
            "flags" => self.flags = u32::from_str_radix(value, 8).ok()?,
            "mnt_id" => self.mount = value.parse().ok(),
            "lock" => self.locks.push(value.to_owned()),
            "eventfd-count" => {
                let count = u64::from_str_radix(value, 16).ok()?;
                self.event = Some((count, self.event.is_some_and(|e| e.1)));
            }
            "eventfd-semaphore" => self.event = Some((self.event?.0, value == "1")),
            "tfd" => self.watches.push(watch(value)?),
            "sigmask" => self.sigmask = Some(u64::from_str_radix(value, 16).ok()?),
            "clockid" => self.timer().clock = value.parse().ok()?,
            "ticks" => self.timer().ticks = value.parse().ok()?,
            "settime flags" => self.timer().settime_flags = u32::from_str_radix(value, 8).ok()?,
            "it_value" => self.timer().value = nanoseconds(value)?,
            "it_interval" => self.timer().interval = nanoseconds(value)?,
            _ => {}
        }
        Some(())
    }

    fn timer(&mut self) -> &mut TimerInfo {
        self.timer.get_or_insert_default()
    }

    /// Where the link of the descriptor points, for kinds that show it here.
    pub fn anonymous(&self) -> Option<&'static str> {
        let told = [
            (self.event.is_some(), "anon_inode:[eventfd]"),
            (!self.watches.is_empty(), "anon_inode:[eventpoll]"),
            (self.timer.is_some(), "anon_inode:[timerfd]"),
            (self.sigmask.is_some(), "anon_inode:[signalfd]"),
        ];
        told.into_iter().find_map(|(is_one, link)| is_one.then_some(link))
    }

    /// Reads that of a descriptor.
    pub fn read(pid: i32, fd: i32) -> std::io::Result<Self> {
        let text = super::read(pid, &format!("fdinfo/{fd}"))?;
        Self::parse(&text)
            .ok_or_else(|| std::io::Error::other(format!("/proc/{pid}/fdinfo/{fd} is not understood")))
    }

    /// Reads that of the descriptor with this number, in an open /proc/PID/fdinfo.
    pub fn read_at(folder: BorrowedFd<'_>, number: &str) -> std::io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(folder, number, flags, Mode::empty())?;
        let text = super::read_single(File::from(file))?;
        Self::parse(&String::from_utf8_lossy(&text))
            .ok_or_else(|| std::io::Error::other(format!("fdinfo/{number} is not understood")))
    }
}

/// `       5 events:       19 data:                5  pos:0 ino:40d sdev:f`
fn watch(value: &str) -> Option<WatchInfo> {
    let (fd, rest) = value.split_once("events:")?;
    let (events, rest) = rest.split_once("data:")?;
    let data = rest.split_whitespace().next()?;
    let inode = rest.split_whitespace().find_map(|word| word.strip_prefix("ino:")).unwrap_or("0");
    Some(WatchInfo {
        inode: u64::from_str_radix(inode, 16).ok()?,
        fd: fd.trim().parse().ok()?,
        events: u32::from_str_radix(events.trim(), 16).ok()?,
        data: u64::from_str_radix(data, 16).ok()?,
    })
}

/// `(4, 999969301)`
fn nanoseconds(value: &str) -> Option<u64> {
    let (s, ns) = value.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(s.trim().parse::<u64>().ok()? * 1_000_000_000 + ns.trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read() {
        let event = FdInfo::parse("pos:\t0\nflags:\t02004002\nmnt_id:\t16\nino:\t1\neventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n").unwrap();
        assert_eq!((event.event, event.flags), (Some((31, true)), 0o2_004_002));
        let epoll = FdInfo::parse("pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:         7f00000005  pos:0 ino:40d sdev:f\n").unwrap();
        assert_eq!(epoll.watches, [WatchInfo { fd: 5, events: 0x19, data: 0x7f_0000_0005, inode: 0x40d }]);
        let timer = FdInfo::parse(
            "clockid: 1\nticks: 2\nsettime flags: 01\nit_value: (4, 5)\nit_interval: (0, 250)\n",
        )
        .unwrap();
        let want = TimerInfo { clock: 1, ticks: 2, settime_flags: 1, value: 4_000_000_005, interval: 250 };
        assert_eq!(timer.timer, Some(want));
        let signal = FdInfo::parse("sigmask:\t0000000000000006\n").unwrap();
        assert_eq!(signal.sigmask, Some(6));
        let lock = FdInfo::parse("pos: 7\nlock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n").unwrap();
        assert_eq!((lock.locks.len(), lock.pos), (1, 7));
    }
}
