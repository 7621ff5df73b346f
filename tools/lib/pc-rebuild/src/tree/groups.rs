//! Process groups: founded, joined and left once all are born.
//!
//! Then everybody is in the group that has the number of their session (that of its leader), or in the builder's.

use std::collections::{BTreeMap, BTreeSet};

use super::family::Family;
use super::plan::{Helpers, PlanError, Step};

/// A group that is not the session's first.
#[derive(Debug, Default)]
struct Group {
    session: u32,
    /// Those that stay in it; its leader may not be one of them.
    members: Vec<u32>,
}

/// Adds the steps that put all into their groups, and ends the helpers.
pub(super) fn set(
    family: &Family<'_>,
    lost: &[u32],
    helpers: &mut Helpers<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let groups = groups(family)?;
    let some_member: BTreeMap<u32, u32> = family.members.iter().map(|m| (m.session, m.pid)).collect();
    let mut ended = Vec::new();
    let mut leaving = BTreeSet::new();
    for (&group, it) in &groups {
        match family.find(group) {
            Some(leader) => {
                steps.push(Step::SetPgid(group, group));
                if family.members[leader].group != group {
                    leaving.insert(group);
                }
            }
            None => {
                let by = some_member.get(&it.session).copied();
                steps.push(Step::Clone { by, pid: group, sibling: false });
                steps.push(Step::SetPgid(group, group));
                ended.push(group);
            }
        }
    }
    for (&group, it) in &groups {
        let staying = it.members.iter().filter(|pid| !leaving.contains(pid) && **pid != group);
        let joins: Vec<_> = staying.map(|pid| Step::SetPgid(*pid, group)).collect();
        if joins.is_empty() && leaving.contains(&group) {
            // Its leader leaves before the others come: somebody has to keep the number.
            let helper = helpers.number()?;
            steps.push(Step::Clone { by: Some(group), pid: helper, sibling: false });
            ended.push(helper);
        }
        steps.extend(joins);
    }
    for pid in leaving {
        let group = family.find(pid).map_or(0, |at| family.members[at].group);
        steps.push(Step::SetPgid(pid, group));
    }
    steps.extend(ended.iter().chain(lost).map(|pid| Step::HelperExit(*pid)));
    Ok(())
}

/// All groups that are to be founded, by number.
fn groups(family: &Family<'_>) -> Result<BTreeMap<u32, Group>, PlanError> {
    let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
    for member in family.members {
        let wrong = || Err(PlanError::Group { pid: member.pid, group: member.group });
        if member.group == member.session {
            continue;
        }
        if member.group == 0 || family.leads_by(member.pid) {
            return wrong(); // the builder's group is of another session; a session leader stays in its own
        }
        let group = groups.entry(member.group).or_default();
        if group.members.is_empty() {
            group.session = member.session;
        }
        if group.session != member.session {
            return wrong();
        }
        group.members.push(member.pid);
    }
    for (&group, it) in &groups {
        let strange = family
            .find(group)
            .is_some_and(|leader| family.members[leader].session != it.session || family.leads(leader));
        if strange || family.is_session(group) {
            return Err(PlanError::Group { pid: it.members[0], group });
        }
    }
    Ok(groups)
}
