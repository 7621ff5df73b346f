//! A small process beside pc-dump that sees to it that nothing which befalls pc-dump leaves its target frozen.
//!
//! ptrace stops end with the tracer. Three cases are left: a tracer that is stopped itself, the moment between
//! the stop that outlives the tracer and Commit, and a TCP connection that is just being read and under repair for that. The
//! guardian is started before the target is touched, hears by a pipe how far things are, and acts when the target has been
//! frozen for too long (it kills pc-dump), and when pc-dump is gone before Commit can have been sent (it ends repair, and resumes
//! the target after the stop was set). It ends with pc-dump.
//!
//! Too long is what the caller says; where a stop may rightly take any time, it is a pc-dump that stands still itself for
//! [`STANDING`].
//!
//! | said | then | pc-dump is late | pc-dump is gone |
//! | --- | --- | --- | --- |
//! | `F` | the target is held | killed | the target runs by itself, repair is ended |
//! | `R` | it runs | | |
//! | `S`, `s` | SIGSTOP is set (`s`: the target was stopped before it was frozen) | killed | the same, then SIGCONT (`s`: none) |
//! | `C` | Commit may go out | | the target stays stopped |
//! | `D` | all is decided | | |

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pc_sys::pidfd::{pidfd_open, pidfd_send_signal};

use crate::error::CaptureError;
use crate::procfs::Stat;
use crate::tcp;

/// The name by which the caller's own program is started as a guardian: it then calls [`guard`] and nothing else.
pub const GUARDIAN: &str = "pc-guardian";
/// How long pc-dump may stand still while it holds its target, where it has all the time it needs.
const STANDING: Duration = Duration::from_secs(5);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(250);
/// How long a dying pc-dump is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The guardian of a target, from the side of pc-dump.
#[derive(Debug)]
pub struct Guardian {
    says: Option<ChildStdin>,
    child: Child,
}

impl Guardian {
    /// Starts it. The target may then be frozen for `most`, until Commit is sent; without it for as long as pc-dump does
    /// not stand still itself.
    pub fn start(pid: i32, most: Option<Duration>) -> io::Result<Self> {
        let most = most.unwrap_or_default(); // zero: any time
        let gone = |_| io::Error::new(io::ErrorKind::NotFound, CaptureError::NoProcess(pid));
        let started = Stat::read(pid).map_err(gone)?.start_time;
        // It must hold no end of a pipe that others wait for.
        pc_sys::fcntl::close_on_exec_from(3)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0(GUARDIAN)
            .args([pid.to_string(), started.to_string(), most.as_micros().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = child.stdin.take();
        let mut ready = [0];
        let heard = child.stdout.take().map_or(Ok(0), |mut out| out.read(&mut ready))?;
        let guardian = Self { says, child };
        if heard == 1 { Ok(guardian) } else { Err(io::Error::other("the guardian did not start")) }
    }

    /// The target is about to be held, for a moment or for the stop.
    pub fn holding(&mut self) -> io::Result<()> {
        self.say(b'F')
    }

    /// It runs.
    pub fn letting_go(&mut self) -> io::Result<()> {
        self.say(b'R')
    }

    /// It is about to get a stop that outlives us.
    pub fn stopping(&mut self, was_stopped: bool) -> io::Result<()> {
        self.say(if was_stopped { b's' } else { b'S' })
    }

    /// Commit is about to be sent.
    pub fn committing(&mut self) -> io::Result<()> {
        self.say(b'C')
    }

    /// What becomes of the target is decided, and done.
    pub fn over(&mut self) {
        // One that is gone does no harm now.
        let _ = self.say(b'D');
    }

    fn say(&mut self, what: u8) -> io::Result<()> {
        self.says.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(&[what])
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.says = None;
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// The guardian itself, on standard input: returns when it is no longer needed, with what people should know.
pub fn guard(args: &[String]) -> io::Result<Option<String>> {
    let [pid, started, most] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
    let number = |text: &String| text.parse::<u64>().map_err(io::Error::other);
    let (pid, started, most) = (number(pid)? as i32, number(started)?, Duration::from_micros(number(most)?));
    let most = Some(most).filter(|most| !most.is_zero());
    // The terminal's signals are not for it.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"pc-guardian");
    let parent = nix::unistd::getppid();
    let (dump, target) = (pidfd_open(parent.as_raw())?, pidfd_open(pid)?);
    if nix::unistd::getppid() != parent || Stat::read(pid)?.start_time != started {
        return Err(io::ErrorKind::NotFound.into());
    }
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = File::options().write(true).open("/dev/null")?;
    io::stdout().write_all(b"!")?;
    io::stdout().flush()?;
    nix::unistd::dup2_stdout(null)?;
    Watch { pid, dump_pid: parent.as_raw(), dump, target, most }.until_it_ends(input)
}

struct Watch {
    pid: i32,
    dump_pid: i32,
    dump: OwnedFd,
    target: OwnedFd,
    most: Option<Duration>,
}

/// The target is held.
struct Held {
    since: Instant,
    /// Since when pc-dump has been seen to stand still.
    standing: Option<Instant>,
}

impl Watch {
    fn until_it_ends(&self, mut input: File) -> io::Result<Option<String>> {
        let (mut last, mut held, mut killed) = (0u8, None, false);
        loop {
            if !wait(input.as_fd(), held.as_ref().map(|held| self.next_look(held)))? {
                if held.as_mut().is_some_and(|held| self.is_late(held)) {
                    // What it has said meanwhile is still heard: nothing that comes later can be unsaid by it.
                    let _ = pidfd_send_signal(self.dump.as_fd(), libc::SIGKILL);
                    (held, killed) = (None, true);
                }
                continue;
            }
            let mut said = [0; 16];
            let n = input.read(&mut said)?;
            match said[..n].last() {
                None => break,
                Some(b'D') => return Ok(None), // whoever else has inherited the pipe
                Some(&what) => last = what,
            }
            held = match last {
                b'F' => Some(Held { since: Instant::now(), standing: None }),
                b'S' | b's' => held,
                _ => None,
            };
        }
        self.gone(last, killed)
    }

    fn next_look(&self, held: &Held) -> Instant {
        self.most.map_or_else(|| Instant::now() + LOOK, |most| held.since + most)
    }

    /// Whether the target has been held for too long.
    fn is_late(&self, held: &mut Held) -> bool {
        if let Some(most) = self.most {
            return held.since.elapsed() >= most;
        }
        let stands = Stat::read(self.dump_pid).is_ok_and(|stat| stat.state == b'T');
        held.standing = held.standing.or_else(|| Some(Instant::now())).filter(|_| stands);
        held.standing.is_some_and(|since| since.elapsed() >= STANDING)
    }

    /// pc-dump is gone (or about to be).
    fn gone(&self, last: u8, killed: bool) -> io::Result<Option<String>> {
        let pid = self.pid;
        if matches!(last, b'F' | b'S' | b's') {
            wait(self.dump.as_fd(), Some(Instant::now() + PATIENCE))?;
            tcp::mend(pid, self.target.as_fd());
        }
        if last == b'S' {
            // It may have died.
            let _ = pidfd_send_signal(self.target.as_fd(), libc::SIGCONT);
        }
        Ok(match last {
            b'F' | b'S' if killed => Some(format!(
                "pid {pid} had been frozen for too long by a pc-dump that stood still: it was killed, and {pid} runs on"
            )),
            _ => None,
        })
    }
}

/// Waits until something can be read; `false` when the time is up.
pub(crate) fn wait(fd: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let left =
            until.map(|until| until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000));
        let left = left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
            Ok(0) if until.is_some_and(|until| Instant::now() >= until) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
