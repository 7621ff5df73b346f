//! Who clones whom, and in which order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::family::Family;
use super::plan::{Helpers, PlanError, Step};

/// The births, in order.
pub(super) struct Births {
    pub steps: Vec<Step>,
    /// Sessions whose leaders are played by helpers, which are still there.
    pub lost: Vec<u32>,
    /// Members that are not cloned by their origin.
    pub unshared: Vec<u32>,
}

/// Leaders that have ended and are played by helpers.
#[derive(Debug, Default)]
struct Lost {
    /// Each session with the member whose child its helper is; `None` = the builder's.
    under: Vec<(u32, Option<usize>)>,
    /// Position by session.
    at: HashMap<u32, usize>,
}

/// How a member is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Builder,
    Parent,
    /// By this process, with `CLONE_PARENT`.
    Sibling(u32),
    /// By a helper of this process that exits, so that the member's parent gets it.
    Orphan(u32),
}

/// Things that happen, and what must have happened before.
struct Graph {
    /// A member's birth, its setsid, and then the births of lost leaders.
    after: Vec<Vec<usize>>,
    waits: Vec<usize>,
}

impl Graph {
    fn new(events: usize) -> Self {
        Self { after: vec![Vec::new(); events], waits: vec![0; events] }
    }

    fn edge(&mut self, first: usize, then: usize) {
        self.after[first].push(then);
        self.waits[then] += 1;
    }

    /// All events, each after those it waits for, and else by `rank`; fewer than all where they wait for each other.
    fn sorted(mut self, rank: impl Fn(usize) -> (usize, usize)) -> Vec<usize> {
        let mut ready: BinaryHeap<_> =
            (0..self.waits.len()).filter(|e| self.waits[*e] == 0).map(|e| Reverse((rank(e), e))).collect();
        let mut sorted = Vec::with_capacity(self.waits.len());
        while let Some(Reverse((_, event))) = ready.pop() {
            sorted.push(event);
            for then in std::mem::take(&mut self.after[event]) {
                self.waits[then] -= 1;
                if self.waits[then] == 0 {
                    ready.push(Reverse((rank(then), then)));
                }
            }
        }
        sorted
    }
}

/// Plans the births; with `share`, members are cloned by their origins where sessions allow it.
pub(super) fn births(
    family: &Family<'_>,
    share: bool,
    helpers: &mut Helpers<'_>,
) -> Result<Births, PlanError> {
    let members = family.members;
    let lost = lost_leaders(family)?;
    let sids = members.len();
    let leaders = 2 * members.len();
    let mut graph = Graph::new(leaders + lost.under.len());
    for (k, (_, parent)) in lost.under.iter().enumerate() {
        parent.iter().for_each(|parent| graph.edge(*parent, leaders + k));
    }
    let mut made = Vec::with_capacity(members.len());
    let mut unshared = Vec::new();
    for (at, member) in members.iter().enumerate() {
        if family.leads(at) {
            graph.edge(at, sids + at);
        }
        let by_origin = if share { by_origin(family, at, &mut graph) } else { None };
        let by = match by_origin {
            Some(by) => by,
            None => by_session(family, at, &lost, &mut graph)?,
        };
        let cloner = match by {
            By::Parent => member.parent,
            By::Sibling(pid) => Some(pid),
            By::Builder | By::Orphan(_) => None,
        };
        if member.origin.is_some_and(|origin| family.find(origin).is_some() && cloner != Some(origin)) {
            unshared.push(member.pid);
        }
        made.push(by);
    }
    let rank = |event: usize| match event.checked_sub(leaders) {
        None => (family.place(event % sids), event / sids),
        Some(k) => (lost.under[k].1.map_or(0, |parent| family.place(parent)), 2),
    };
    let events = graph.sorted(rank);
    if events.len() < leaders + lost.under.len() {
        let stuck = (0..members.len()).find(|at| !events.contains(at)).unwrap_or(0);
        return Err(PlanError::Session { pid: members[stuck].pid, session: members[stuck].session });
    }
    let mut steps = Vec::new();
    for event in events {
        if let Some(k) = event.checked_sub(leaders) {
            let (pid, parent) = lost.under[k];
            let by = parent.map(|parent| members[parent].pid);
            steps.extend([Step::Clone { by, pid, sibling: false }, Step::SetSid(pid)]);
        } else if let Some(at) = event.checked_sub(sids) {
            steps.extend(family.leads(at).then_some(Step::SetSid(members[at].pid)));
        } else {
            clone(family, event, made[event], helpers, &mut steps)?;
        }
    }
    Ok(Births { steps, lost: lost.under.iter().map(|(pid, _)| *pid).collect(), unshared })
}

/// The steps of one birth.
fn clone(
    family: &Family<'_>,
    at: usize,
    by: By,
    helpers: &mut Helpers<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let (pid, parent) = (family.members[at].pid, family.members[at].parent);
    match (by, parent) {
        (By::Builder, _) => steps.push(Step::Clone { by: None, pid, sibling: false }),
        (By::Parent, by) => steps.push(Step::Clone { by, pid, sibling: false }),
        (By::Sibling(by), _) => steps.push(Step::Clone { by: Some(by), pid, sibling: true }),
        (By::Orphan(by), Some(parent)) => {
            let helper = helpers.number()?;
            steps.extend([
                Step::Clone { by: Some(by), pid: helper, sibling: false },
                Step::Clone { by: Some(helper), pid, sibling: false },
                Step::Subreaper(parent, true),
                Step::HelperExit(helper),
                Step::Subreaper(parent, false),
            ]);
        }
        (By::Orphan(_), None) => {
            return Err(PlanError::Session { pid, session: family.members[at].session });
        }
    }
    Ok(())
}

/// The session that a member must be born in and its parent is never in, if there is one.
fn misfit(family: &Family<'_>, at: usize) -> Option<u32> {
    let session = family.born[at]?;
    match family.parent(at) {
        None => (session != 0).then_some(session),
        Some(parent) => {
            let own = family.leads(parent) && session == family.members[parent].pid;
            (family.born[parent] != Some(session) && !own).then_some(session)
        }
    }
}

/// Leaders that have ended and must be played, each with the member whose child the helper is: the lowest parent of those
/// that are made in the session from outside it. All such parents are on one line of ancestors.
fn lost_leaders(family: &Family<'_>) -> Result<Lost, PlanError> {
    let mut lost = Lost::default();
    for &at in &family.order {
        let Some(session) = misfit(family, at).filter(|session| family.is_lost(*session)) else { continue };
        let parent = family.parent(at);
        let k = *lost.at.entry(session).or_insert_with(|| {
            lost.under.push((session, parent));
            lost.under.len() - 1
        });
        lost.under[k].1 = match (lost.under[k].1, parent) {
            (before, None) => before,
            (None, parent) => parent,
            (Some(before), Some(parent)) if family.is_above(Some(parent), before) => Some(before),
            (Some(before), Some(parent)) if family.is_above(Some(before), parent) => Some(parent),
            _ => return Err(PlanError::Session { pid: family.members[at].pid, session }),
        };
    }
    Ok(lost)
}

/// Makes the member in the right session.
fn by_session(family: &Family<'_>, at: usize, lost: &Lost, graph: &mut Graph) -> Result<By, PlanError> {
    let sids = family.members.len();
    let parent = family.parent(at);
    if let Some(parent) = parent {
        graph.edge(parent, at);
    }
    let Some(session) = misfit(family, at) else {
        if let (Some(parent), Some(session)) = (parent, family.born[at])
            && family.leads(parent)
        {
            let own = session == family.members[parent].pid;
            if own { graph.edge(sids + parent, at) } else { graph.edge(at, sids + parent) }
        }
        return Ok(if parent.is_some() { By::Parent } else { By::Builder });
    };
    let (leads_from, ready) = match (family.find(session), lost.at.get(&session)) {
        (Some(leader), _) => (family.parent(leader), sids + leader),
        (None, Some(&k)) => (lost.under[k].1, 2 * sids + k),
        (None, None) => return Err(PlanError::Session { pid: family.members[at].pid, session }),
    };
    graph.edge(ready, at);
    let above = match family.find(session) {
        Some(leader) => family.is_above(parent, leader),
        None => leads_from.is_none_or(|from| family.is_above(parent, from)),
    };
    match parent {
        _ if leads_from == parent => Ok(By::Sibling(session)),
        Some(_) if above => Ok(By::Orphan(session)),
        _ => Err(PlanError::Session { pid: family.members[at].pid, session }),
    }
}

/// Makes the member by its origin, where that is its parent or a sibling in the right session.
fn by_origin(family: &Family<'_>, at: usize, graph: &mut Graph) -> Option<By> {
    let sids = family.members.len();
    let origin = family.find(family.members[at].origin?)?;
    let parent = family.parent(at)?;
    if origin == at || family.parent(origin) != Some(parent) {
        return None; // of its parent, or not to be had
    }
    match family.born[at] {
        None => graph.edge(origin, at),
        Some(session) if family.born[origin] == Some(session) => {
            graph.edge(origin, at);
            if family.leads(origin) {
                graph.edge(at, sids + origin);
            }
        }
        Some(session) if family.leads(origin) && session == family.members[origin].pid => {
            graph.edge(sids + origin, at);
        }
        Some(_) => return None,
    }
    Some(By::Sibling(family.members[origin].pid))
}
