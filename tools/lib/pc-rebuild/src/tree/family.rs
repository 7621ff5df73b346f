//! A tree of processes, indexed: who is whose child, who leads what, and in which session each is to be born.

use std::collections::{HashMap, HashSet};

use super::plan::{Member, PlanError};

/// The tree, its members by position in `members`.
pub(super) struct Family<'a> {
    pub members: &'a [Member],
    by_pid: HashMap<u32, usize>,
    sessions: HashSet<u32>,
    children: Vec<Vec<usize>>,
    /// All members, parents before children.
    pub order: Vec<usize>,
    /// Position in `order`, and that of the last descendant.
    span: Vec<(usize, usize)>,
    /// The session that each must be born in; `None` = any will do.
    pub born: Vec<Option<u32>>,
}

/// What a process and those below it ask of the session that it is born in.
#[derive(Debug, Clone, Default)]
struct Asked {
    /// The session that it has to be born in.
    must: Option<u32>,
    /// Sessions whose leaders have ended, and in which some process below is to be born whose parent is never in them: a
    /// helper below has to lead them (true), or this process is born in them (false).
    inside: HashMap<u32, bool>,
}

impl<'a> Family<'a> {
    /// Indexes the tree and settles the births of session leaders.
    pub fn of(members: &'a [Member]) -> Result<Self, PlanError> {
        let mut by_pid = HashMap::new();
        for (at, member) in members.iter().enumerate() {
            if member.pid == 0 || by_pid.insert(member.pid, at).is_some() {
                return Err(PlanError::Twice(member.pid));
            }
        }
        let mut children = vec![Vec::new(); members.len()];
        let mut roots = Vec::new();
        for (at, member) in members.iter().enumerate() {
            match member.parent {
                None => roots.push(at),
                Some(parent) => {
                    let parent = by_pid.get(&parent).ok_or(PlanError::NoPlace(member.pid))?;
                    children[*parent].push(at);
                }
            }
        }
        let &[root] = roots.as_slice() else {
            return Err(PlanError::NoPlace(roots.get(1).map_or(0, |at| members[*at].pid)));
        };
        let born = vec![None; members.len()];
        let sessions = members.iter().map(|member| member.session).collect();
        let mut family =
            Self { members, by_pid, sessions, children, order: Vec::new(), span: Vec::new(), born };
        family.walk(root);
        if let Some(lonely) = (0..members.len()).find(|at| family.span[*at].1 == 0) {
            return Err(PlanError::NoPlace(members[lonely].pid)); // its own ancestor
        }
        family.check_numbers()?;
        family.settle()?;
        Ok(family)
    }

    /// Puts all in order, without recursion: a tree may be as deep as it likes.
    fn walk(&mut self, root: usize) {
        self.span = vec![(0, 0); self.members.len()];
        let mut path = vec![(root, 0)];
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            if *next == 0 {
                self.span[at].0 = self.order.len();
                self.order.push(at);
            }
            let child = self.children[at].get(*next).copied();
            *next += 1;
            match child {
                Some(child) => path.push((child, 0)),
                None => {
                    self.span[at].1 = self.order.len();
                    path.pop();
                }
            }
        }
    }

    /// A number means one thing: a thread's is nobody's pid, and no session or group but its own process's.
    fn check_numbers(&self) -> Result<(), PlanError> {
        let mut tids = HashSet::new();
        for &tid in self.members.iter().flat_map(|member| &member.tids) {
            if self.by_pid.contains_key(&tid) || !tids.insert(tid) {
                return Err(PlanError::Twice(tid));
            }
        }
        for member in self.members {
            for number in [member.session, member.group] {
                if tids.contains(&number) {
                    return Err(PlanError::Twice(number));
                }
            }
            // A session that a living process leads is that process's session.
            match self.find(member.session) {
                Some(leader) if !self.leads(leader) => {
                    return Err(PlanError::Session { pid: member.pid, session: member.session });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All numbers that the tree uses.
    pub fn numbers(&self) -> HashSet<u32> {
        let own = |m: &Member| [m.pid, m.session, m.group];
        let tids = self.members.iter().flat_map(|m| m.tids.iter().copied());
        self.members.iter().flat_map(own).chain(tids).collect()
    }

    /// The member with this pid.
    pub fn find(&self, pid: u32) -> Option<usize> {
        self.by_pid.get(&pid).copied()
    }

    /// A member's parent; `None` for the root.
    pub fn parent(&self, at: usize) -> Option<usize> {
        self.members[at].parent.and_then(|pid| self.find(pid))
    }

    /// Whether it leads a session of its own.
    pub fn leads(&self, at: usize) -> bool {
        self.members[at].session == self.members[at].pid
    }

    /// The same by pid.
    pub fn leads_by(&self, pid: u32) -> bool {
        self.find(pid).is_some_and(|at| self.leads(at))
    }

    /// Whether somebody is in a session of this number.
    pub fn is_session(&self, number: u32) -> bool {
        self.sessions.contains(&number)
    }

    /// Whether `above` is `at` or one of its ancestors; `None` is the builder, above all.
    pub fn is_above(&self, above: Option<usize>, at: usize) -> bool {
        above.is_none_or(|above| {
            self.span[above].0 <= self.span[at].0 && self.span[at].1 <= self.span[above].1
        })
    }

    /// Position in the order of the tree.
    pub fn place(&self, at: usize) -> usize {
        self.span[at].0
    }

    /// In which session each is born: all but leaders in their own; leaders in the one that those below them need.
    fn settle(&mut self) -> Result<(), PlanError> {
        let mut asked = vec![Asked::default(); self.members.len()];
        for &at in self.order.iter().rev() {
            asked[at] = self.ask(at, &mut asked)?;
        }
        for i in 0..self.order.len() {
            let at = self.order[i];
            self.born[at] = asked[at].must.or_else(|| {
                let parent = self.parent(at)?;
                let own = self.leads(parent).then_some(self.members[parent].pid);
                [self.born[parent], own]
                    .into_iter()
                    .flatten()
                    .find(|it| asked[at].inside.get(it) == Some(&false))
            });
        }
        Ok(())
    }

    /// What a process asks, from what its children do; those that had a choice and now have none learn that.
    fn ask(&self, at: usize, asked: &mut [Asked]) -> Result<Asked, PlanError> {
        let children = &self.children[at];
        let mut wanted: HashMap<u32, usize> = HashMap::new();
        for session in children.iter().flat_map(|child| asked[*child].inside.keys()) {
            *wanted.entry(*session).or_default() += 1;
        }
        // A helper cannot be below two children: those that can come from the session themselves do.
        for &child in children {
            if asked[child].must.is_some() {
                continue;
            }
            let both = |session: &u32| wanted.get(session).is_some_and(|children| *children > 1);
            let free = asked[child].inside.iter().filter(|(_, below)| !**below);
            let must = free.map(|(session, _)| *session).filter(both).min();
            if let Some(session) = must {
                asked[child].must = must;
                asked[child].inside.remove(&session);
                wanted.entry(session).and_modify(|children| *children -= 1);
            }
        }
        let own = self.members[at].session;
        let mut must = (!self.leads(at)).then_some(own);
        let mut inside = HashMap::new();
        for &child in children {
            for (session, below) in &asked[child].inside {
                *inside.entry(*session).or_default() |=
                    *below || !self.leads(at) || asked[child].must.is_some();
            }
            let Some(session) = asked[child].must.filter(|session| *session != own) else { continue };
            if self.is_lost(session) {
                *inside.entry(session).or_default() |= !self.leads(at);
            } else if self.leads(at) && !self.is_below(session, at) {
                if must.is_some_and(|other| other != session) {
                    return Err(PlanError::Session { pid: self.members[child].pid, session });
                }
                must = Some(session);
            }
        }
        inside.remove(&own);
        Ok(Asked { must, inside })
    }

    /// Whether nobody leads the session any more.
    pub fn is_lost(&self, session: u32) -> bool {
        session != 0 && self.find(session).is_none()
    }

    /// Whether the session's leader is a descendant of this one.
    fn is_below(&self, session: u32, above: usize) -> bool {
        self.find(session).is_some_and(|leader| self.is_above(Some(above), leader))
    }
}
