//! The plan of births: who makes which process, and when each founds or joins its session and group.
//!
//! A process gets its parent and its session at birth (clone(2)), and can only found a session of its own later
//! (setsid(2)); groups are joined afterwards (setpgid(2)). So the order of births decides whether the tree can be made
//! at all. The plan is a pure function of the tree: it makes no system call.
//!
//! - A process is cloned by its parent while the parent is in the right session: before the parent's setsid for the
//!   session that the parent was born in, after it for the parent's own.
//! - Where the parent never is in that session, a member of the session clones it: as a sibling (`CLONE_PARENT`), or by a
//!   helper that exits, so that the kernel gives the child to the nearest subreaper above, which is set for that moment.
//! - A session or group leader that has ended is played by a helper with its pid, which exits once it is not needed.
//! - Groups are set when all are born. A group that its own leader leaves before others come is kept by a helper.
//!
//! What cannot be made in this way is refused by name; no history of real calls that was tried leads to such a tree.

use std::collections::HashSet;

use super::family::Family;
use super::{groups, order};

/// A process of the tree to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its pid.
    pub pid: u32,
    /// Its parent's pid; `None` for the root, whose parent is the builder.
    pub parent: Option<u32>,
    /// Process group; 0 = led from outside the tree: the builder's.
    pub group: u32,
    /// Session; 0 = led from outside the tree: the builder's.
    pub session: u32,
    /// The process whose memory it shares copy-on-write, if it is one of the tree: it should be cloned by that.
    pub origin: Option<u32>,
    /// Tids of its threads besides the first.
    pub tids: Vec<u32>,
}

/// A step of the plan. Each is one system call of the process named, or of the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// clone3(2) with `set_tid`, by a process of the tree, a helper, or (`None`) the builder.
    Clone {
        /// Who makes it.
        by: Option<u32>,
        /// The pid it gets.
        pid: u32,
        /// With `CLONE_PARENT`: its parent is that of `by`.
        sibling: bool,
    },
    /// setsid(2) of a process.
    SetSid(u32),
    /// setpgid(2) of a process: `(pid, group)`; group 0 is the builder's.
    SetPgid(u32, u32),
    /// `PR_SET_CHILD_SUBREAPER` of a process, on or off, for the exit of a helper.
    Subreaper(u32, bool),
    /// A helper exits, and is reaped so that its parent sees nothing of it.
    HelperExit(u32),
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Members that are not cloned by their origin: what they share with it is copied.
    pub unshared: Vec<u32>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two processes, threads, groups or sessions claim a number that only one can have.
    #[error("the number {0} belongs to two processes or threads")]
    Twice(u32),
    /// A parent is not in the tree, or there is no single root.
    #[error("process {0} has no place in the tree")]
    NoPlace(u32),
    /// A process is in a session that no process which could make it was ever in.
    #[error("process {pid} is in session {session}, in which no process can make it")]
    Session {
        /// The process.
        pid: u32,
        /// The session.
        session: u32,
    },
    /// A process is in a group of another session.
    #[error("process {pid} is in group {group}, which is not of its session")]
    Group {
        /// The process.
        pid: u32,
        /// The group.
        group: u32,
    },
    /// No number is left for a helper.
    #[error("no process number is left for a helper")]
    NoSpare,
}

/// Plans the births of a tree. `spare` gives numbers for helpers, which must be free where the tree is made; those that
/// the tree uses itself are passed over.
pub fn plan(members: &[Member], spare: &mut dyn Iterator<Item = u32>) -> Result<Plan, PlanError> {
    let family = Family::of(members)?;
    let mut helpers = Helpers { used: family.numbers(), spare };
    let mut plan = Plan::default();
    // Sharing is worth less than a tree: where it makes a circle of births, the plan does without.
    let mut births = order::births(&family, true, &mut helpers);
    if births.is_err() {
        births = order::births(&family, false, &mut helpers);
    }
    let births = births?;
    plan.steps = births.steps;
    groups::set(&family, &births.lost, &mut helpers, &mut plan.steps)?;
    plan.unshared = births.unshared;
    Ok(plan)
}

/// Numbers for helpers.
pub(super) struct Helpers<'a> {
    used: HashSet<u32>,
    spare: &'a mut dyn Iterator<Item = u32>,
}

impl Helpers<'_> {
    /// A number that nobody else has.
    pub fn number(&mut self) -> Result<u32, PlanError> {
        loop {
            let number = self.spare.next().ok_or(PlanError::NoSpare)?;
            if self.used.insert(number) {
                return Ok(number);
            }
        }
    }
}
