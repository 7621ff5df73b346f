//! The census: everything that can be observed of a process, read before and after a move and compared.
//!
//! A [`Sample`] holds readings: a name that the [`table`] knows (`status/Umask`), of what (`thread 7`, `fd 3`), and a value.
//! What the table calls lost may differ; all else must be the same. A reading whose name the table does not know fails
//! the census, so that what a new kernel adds to /proc is noticed.
//!
//! The process is held by ptrace(2) while it is read, and goes on as if nothing had been.

mod fds;
mod inside;
mod memory;
mod moves;
mod options;
mod proc;
mod sockets;
pub mod table;
mod who;

use std::collections::{BTreeMap, BTreeSet};

use pc_trace::{SeizeOptions, Tracees};
use table::{Fate, Look};

pub use moves::{Before, before, is_due, of_running, take, taken};

/// All readings of a process at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    readings: BTreeMap<(String, String), String>,
}

impl Sample {
    /// Holds a process and reads it.
    pub fn take(pid: i32) -> Sample {
        let mut tracees = Tracees::seize(pid, &SeizeOptions::default()).expect("the process can be held");
        let mut sample = Sample::outside(pid);
        inside::read(&mut tracees, &who::Who::of(pid), &mut sample);
        tracees.detach().expect("it goes on");
        sample
    }

    /// Reads what can be read without holding the process: somebody else does, or it is stopped.
    pub fn outside(pid: i32) -> Sample {
        let mut sample = Sample::default();
        let mut who = who::Who::of(pid);
        fds::read(pid, &mut who, &mut sample);
        memory::read(pid, &mut who, &mut sample);
        proc::read(pid, &who, &mut sample);
        sample
    }

    /// Reads what a process's status is said to hold.
    pub fn of_status(text: &str) -> Sample {
        let mut sample = Sample::default();
        proc::status(text, "process", &who::Who::of(std::process::id() as i32), &mut sample);
        sample
    }

    /// Notes a reading. Several of one name and subject are joined.
    pub fn note(&mut self, name: impl Into<String>, of: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        self.readings
            .entry((name.into(), of.into()))
            .and_modify(|old| {
                if value != "told" {
                    *old = format!("{old}; {value}");
                }
            })
            .or_insert(value);
    }

    /// The value of a reading.
    pub fn get(&self, name: &str, of: &str) -> Option<&str> {
        self.readings.get(&(name.to_owned(), of.to_owned())).map(String::as_str)
    }

    /// Whether a descriptor is a connection that is closed in the copy, as all are without `--tcp-established`.
    fn is_closed(&self, copy: &Sample, of: &str) -> bool {
        self.is_at_end(of) == Some(false) && copy.is_at_end(of) == Some(true)
    }

    /// Whether a descriptor is a TCP socket without a connection; `None` if it is something else.
    fn is_at_end(&self, of: &str) -> Option<bool> {
        const CLOSED: &str = "07";
        self.get(sockets::TCP_STATE, of).map(|state| state.starts_with(CLOSED))
    }

    /// Whether a reading is one that a connection which has ended keeps of its time, and its copy does not: addresses, route,
    /// and what the kernel had tuned. (Of sockets without a connection, only such a one has a route.)
    fn is_of_the_past(&self, name: &str, of: &str) -> bool {
        const PAST: [&str; 10] = [
            sockets::TCP_STATE,
            "so/TCP/QUICKACK",
            "socket/name",
            "so/IP/MTU",
            "so/IPV6/MTU",
            "so/IP/MULTICAST_TTL",
            "so/SOCKET/SNDBUF",
            "so/SOCKET/RCVBUF",
            "so/TCP/MAXSEG",
            "so/TCP/WINDOW_CLAMP",
        ];
        let routed = ["so/IP/MTU", "so/IPV6/MTU"].iter().any(|mtu| self.get(mtu, of).is_some());
        PAST.contains(&name) && routed && self.is_at_end(of) == Some(true)
    }

    /// How many readings there are.
    pub fn len(&self) -> usize {
        self.readings.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }

    /// What is wrong with the copy: readings that differ and must not, and those that the table does not know.
    pub fn differences(&self, copy: &Sample, moved: Moved) -> Vec<String> {
        let keys: BTreeSet<_> = self.readings.keys().chain(copy.readings.keys()).collect();
        let wrong = keys.into_iter().filter_map(|(name, of)| {
            let (was, is) = (self.get(name, of), copy.get(name, of));
            let may_differ = match table::look(name) {
                Look::Unknown => {
                    let value = was.or(is).unwrap_or_default();
                    return Some(format!(
                        "{name} of {of} ({value}): the table of the census does not know it"
                    ));
                }
                Look::Row(row) => row.fate == Fate::Lost,
            };
            let follows = was == Some(who::OUTSIDE)
                || inside::has_waited(name, was, is)
                || self.get(fds::OUTSIDE, of).is_some()
                || self.is_closed(copy, of)
                || self.is_of_the_past(name, of);
            if was == is || may_differ || follows || moved.changes(name) {
                return None;
            }
            let text = |value: Option<&str>| value.map_or("nothing".to_owned(), |value| format!("[{value}]"));
            Some(format!("{name} of {of}: was {}, is {}", text(was), text(is)))
        });
        wrong.collect()
    }
}

/// How the process was moved, as far as that changes what is seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// `--new-pid-ns`.
    pub new_pid_ns: bool,
}

impl Moved {
    /// Whether the way of moving by itself makes this reading another.
    fn changes(self, name: &str) -> bool {
        self.new_pid_ns && table::NEW_PID_NS.iter().any(|(known, _)| *known == name)
    }
}
