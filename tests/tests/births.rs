//! Plans of births, carried out on a model of the kernel's rules and by the kernel itself: the tree comes out as it was,
//! for thousands of trees that histories of fork, setsid, setpgid and exit can lead to.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use pc_rebuild::tree::plan::{Member, Plan, PlanError, Step, plan};
use pc_tests::program;

/// A process as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    /// 0 = the builder.
    parent: u32,
    session: u32,
    group: u32,
    zombie: bool,
    subreaper: bool,
}

/// The rules of clone(2), setsid(2), setpgid(2), and of reparenting (kernel/exit.c, kernel/sys.c).
#[derive(Debug, Default)]
struct Kernel {
    all: BTreeMap<u32, Process>,
}

type Refused = Result<(), String>;

impl Kernel {
    fn get(&mut self, pid: u32) -> Result<&mut Process, String> {
        self.all.get_mut(&pid).filter(|it| !it.zombie).ok_or_else(|| format!("no process {pid}"))
    }

    /// A number is in use as long as it names a process, a session or a group.
    fn is_taken(&self, pid: u32) -> bool {
        self.all.contains_key(&pid) || self.all.values().any(|it| it.session == pid || it.group == pid)
    }

    fn fork(&mut self, by: Option<u32>, pid: u32, sibling: bool) -> Refused {
        if pid == 0 || self.is_taken(pid) {
            return Err(format!("EEXIST: {pid}"));
        }
        let (parent, session, group) = match by {
            None => (0, 0, 0),
            Some(by) => {
                let it = self.get(by)?;
                (if sibling { it.parent } else { by }, it.session, it.group)
            }
        };
        self.all.insert(pid, Process { parent, session, group, zombie: false, subreaper: false });
        Ok(())
    }

    fn setsid(&mut self, pid: u32) -> Refused {
        self.get(pid)?;
        if self.all.values().any(|it| it.group == pid || it.session == pid) {
            return Err(format!("EPERM: setsid of {pid}"));
        }
        let it = self.get(pid)?;
        (it.session, it.group) = (pid, pid);
        Ok(())
    }

    fn setpgid(&mut self, pid: u32, group: u32) -> Refused {
        let session = self.get(pid)?.session;
        let builders = group == 0 && session == 0;
        let there = builders || self.all.values().any(|it| it.group == group && it.session == session);
        if session == pid || group != pid && !there {
            return Err(format!("EPERM: setpgid of {pid} to {group}"));
        }
        self.get(pid)?.group = group;
        Ok(())
    }

    /// Ends a process; its children go to the nearest subreaper above, else to `init`.
    fn exit(&mut self, pid: u32, init: Option<u32>, reaped: bool) -> Refused {
        let mut reaper = self.get(pid)?.parent;
        while reaper != 0 && !self.all[&reaper].subreaper {
            reaper = self.all[&reaper].parent;
        }
        let reaper = if reaper == 0 { init } else { Some(reaper) };
        for it in self.all.values_mut().filter(|it| it.parent == pid) {
            it.parent = reaper.ok_or_else(|| format!("children of {pid} are lost to the outside"))?;
        }
        if reaped {
            self.all.remove(&pid);
        } else {
            self.get(pid)?.zombie = true;
        }
        Ok(())
    }

    fn carry_out(&mut self, plan: &Plan) -> Refused {
        for step in &plan.steps {
            match *step {
                Step::Clone { by, pid, sibling } => self.fork(by, pid, sibling),
                Step::SetSid(pid) => self.setsid(pid),
                Step::SetPgid(pid, group) => self.setpgid(pid, group),
                Step::Subreaper(pid, on) => self.get(pid).map(|it| it.subreaper = on),
                Step::HelperExit(pid) => self.exit(pid, None, true),
            }
            .map_err(|why| format!("{step:?}: {why}"))?;
        }
        Ok(())
    }

    fn members(&self) -> Vec<Member> {
        let member = |(pid, it): (&u32, &Process)| Member {
            pid: *pid,
            parent: (it.parent != 0).then_some(it.parent),
            group: it.group,
            session: it.session,
            origin: None,
            tids: Vec::new(),
        };
        self.all.iter().map(member).collect()
    }
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

const ROOT: u32 = 1000;

/// A tree that some history of real calls led to. Its root is the reaper of what is lost below it.
fn history(seed: u64, calls: usize, most: usize) -> Kernel {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut kernel = Kernel::default();
    kernel.fork(None, ROOT, false).expect("a root");
    let mut next = ROOT;
    for _ in 0..calls {
        let living: Vec<u32> = kernel.all.iter().filter(|(_, it)| !it.zombie).map(|(pid, _)| *pid).collect();
        let pid = living[random.below(living.len())];
        // What the kernel refuses is a call that failed, as in life.
        let _ = match random.below(10) {
            0..=3 if living.len() < most => {
                next += 1;
                kernel.fork(Some(pid), next, pid != ROOT && random.below(5) == 0)
            }
            4 | 5 => kernel.setsid(pid),
            6 => kernel.setpgid(pid, pid),
            7 => {
                let other = living[random.below(living.len())];
                let group = kernel.all[&other].group;
                kernel.setpgid(pid, group)
            }
            8 if random.below(3) == 0 => kernel.get(pid).map(|it| it.subreaper = true),
            _ if pid != ROOT => kernel.exit(pid, Some(ROOT), random.below(4) != 0),
            _ => Ok(()),
        };
    }
    kernel
}

/// Each process with its parent, group and session.
type Relations = BTreeSet<(u32, Option<u32>, u32, u32)>;

fn relations(members: &[Member]) -> Relations {
    members.iter().map(|m| (m.pid, m.parent, m.group, m.session)).collect()
}

fn made(members: &[Member]) -> Result<(Plan, Kernel), String> {
    let plan = plan(members, &mut (500_000..)).map_err(|why| why.to_string())?;
    let mut kernel = Kernel::default();
    kernel.carry_out(&plan)?;
    Ok((plan, kernel))
}

#[test]
fn every_tree_that_a_history_leads_to_comes_out_as_it_was() {
    let (mut helpers, mut orphans, mut siblings) = (0, 0, 0);
    for seed in 0..20_000 {
        let members = history(seed, 20 + seed as usize % 150, 3 + seed as usize % 20).members();
        let (plan, kernel) = made(&members).unwrap_or_else(|why| panic!("seed {seed}: {why}\n{members:#?}"));
        assert_eq!(relations(&kernel.members()), relations(&members), "seed {seed}");
        let count = |what: fn(&Step) -> bool| plan.steps.iter().filter(|step| what(step)).count();
        helpers += count(|step| matches!(step, Step::HelperExit(_)));
        orphans += count(|step| matches!(step, Step::Subreaper(_, true)));
        siblings += count(|step| matches!(step, Step::Clone { sibling: true, .. }));
    }
    assert!(helpers > 1000 && orphans > 1000 && siblings > 1000, "{helpers} {orphans} {siblings}");
}

/// What the kernel makes of a plan: plain processes carry it out in a pid namespace of their own.
fn by_the_kernel(plan: &Plan) -> Result<Relations, String> {
    let line = |step: &Step| match *step {
        Step::Clone { by, pid, sibling } => {
            format!("clone {} {pid} {}\n", by.unwrap_or(0), u8::from(sibling))
        }
        Step::SetSid(pid) => format!("setsid {pid}\n"),
        Step::SetPgid(pid, group) => format!("setpgid {pid} {group}\n"),
        Step::Subreaper(pid, on) => format!("subreaper {pid} {}\n", u8::from(on)),
        Step::HelperExit(pid) => format!("exit {pid}\n"),
    };
    let steps: String = plan.steps.iter().map(line).collect();
    let mut command = Command::new("unshare");
    let command = command.arg("--pid").arg(program("guest-puppets"));
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| why.to_string())?;
    let written = child.stdin.take().map(|mut input| input.write_all(steps.as_bytes()));
    let output = child.wait_with_output().map_err(|why| why.to_string())?;
    if !output.status.success() || written.is_none_or(|it| it.is_err()) {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let relation = |line: &str| {
        let words: Vec<u32> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        (words[0], (words[1] != 0).then_some(words[1]), words[2], words[3])
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(relation).collect())
}

#[test]
fn the_kernel_makes_of_a_plan_the_tree_that_was() {
    // Trees that need everything: helpers for leaders that have ended, orphans, siblings, groups kept.
    let needs = |plan: &Plan| {
        let has = |what: fn(&Step) -> bool| plan.steps.iter().any(what);
        has(|step| matches!(step, Step::Subreaper(..)))
            && has(|step| matches!(step, Step::Clone { sibling: true, .. }))
    };
    let seeds = (0..).map(|seed| (seed, history(seed, 60 + seed as usize % 150, 12).members()));
    let mut tried = 0;
    for (seed, members) in seeds {
        let (plan, _) = made(&members).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        if !needs(&plan) {
            continue;
        }
        let relations_there =
            by_the_kernel(&plan).unwrap_or_else(|why| panic!("seed {seed}: {why}\n{plan:#?}"));
        assert_eq!(relations_there, relations(&members), "seed {seed}");
        tried += 1;
        if tried == 20 {
            break;
        }
    }
}

fn member(pid: u32, parent: Option<u32>, group: u32, session: u32) -> Member {
    Member { pid, parent, group, session, origin: None, tids: Vec::new() }
}

#[test]
fn one_process_is_cloned_by_the_builder_and_nothing_else() {
    let (plan, _) = made(&[member(7, None, 0, 0)]).expect("a plan");
    assert_eq!(plan.steps, [Step::Clone { by: None, pid: 7, sibling: false }]);
}

#[test]
fn a_child_of_the_old_session_is_born_before_its_parents_setsid() {
    let members = [member(7, None, 7, 7), member(8, Some(7), 0, 0), member(9, Some(7), 7, 7)];
    let (plan, _) = made(&members).expect("a plan");
    let clone = |pid, by| Step::Clone { by, pid, sibling: false };
    assert_eq!(plan.steps, [clone(7, None), clone(8, Some(7)), Step::SetSid(7), clone(9, Some(7))]);
}

#[test]
fn a_daemon_whose_session_leader_has_ended_gets_one_played() {
    let (plan, kernel) = made(&[member(7, None, 5, 5), member(8, Some(7), 5, 5)]).expect("a plan");
    assert_eq!(plan.steps[..2], [Step::Clone { by: None, pid: 5, sibling: false }, Step::SetSid(5)]);
    assert_eq!(plan.steps[2], Step::Clone { by: Some(5), pid: 7, sibling: true });
    assert_eq!(plan.steps.last(), Some(&Step::HelperExit(5)));
    assert!(!kernel.all.contains_key(&5));
}

#[test]
fn siblings_are_cloned_by_their_origin_unless_the_tree_could_not_be_made() {
    let shared = |origin, it: Member| Member { origin: Some(origin), ..it };
    let members =
        [member(7, None, 0, 0), shared(7, member(8, Some(7), 0, 0)), shared(8, member(9, Some(7), 0, 0))];
    let (plan, _) = made(&members).expect("a plan");
    assert_eq!(plan.steps[2], Step::Clone { by: Some(8), pid: 9, sibling: true });
    assert!(plan.unshared.is_empty());
    // Each the other's origin: a circle.
    let members =
        [member(7, None, 0, 0), shared(9, member(8, Some(7), 0, 0)), shared(8, member(9, Some(7), 0, 0))];
    let (plan, kernel) = made(&members).expect("a plan");
    assert_eq!(relations(&kernel.members()), relations(&members));
    assert_eq!(plan.unshared, [8, 9]);
}

#[test]
fn groups_that_have_changed_places_with_their_leaders_are_kept_by_helpers() {
    let members = [member(7, None, 0, 0), member(8, Some(7), 9, 0), member(9, Some(7), 8, 0)];
    let (_, kernel) = made(&members).expect("a plan");
    assert_eq!(relations(&kernel.members()), relations(&members));
    assert_eq!(kernel.all.len(), 3, "no helper stays");
}

#[test]
fn what_no_history_leads_to_is_refused_by_name() {
    let refused = |members: &[Member]| plan(members, &mut (500_000..)).expect_err("no plan");
    assert_eq!(refused(&[member(7, None, 0, 0), member(7, Some(7), 0, 0)]), PlanError::Twice(7));
    assert_eq!(refused(&[member(7, None, 0, 0), member(8, Some(6), 0, 0)]), PlanError::NoPlace(8));
    assert_eq!(
        refused(&[member(7, None, 0, 0), member(8, Some(9), 0, 0), member(9, Some(8), 0, 0)]),
        PlanError::NoPlace(8)
    );
    // Its parent was never in the builder's session: a session that has ended before came down to it.
    let members = [member(7, None, 0, 0), member(8, Some(7), 5, 5), member(9, Some(8), 0, 0)];
    assert_eq!(refused(&members), PlanError::Session { pid: 9, session: 0 });
    let members = [member(7, None, 7, 7), member(8, Some(7), 0, 7)];
    assert_eq!(refused(&members), PlanError::Group { pid: 8, group: 0 });
    let thread = Member { tids: vec![8], ..member(7, None, 0, 0) };
    assert_eq!(refused(&[thread, member(9, Some(7), 8, 0)]), PlanError::Twice(8));
    let members = [member(7, None, 0, 0), member(8, Some(7), 9, 0), member(9, Some(7), 8, 0)];
    assert_eq!(plan(&members, &mut std::iter::empty()), Err(PlanError::NoSpare));
}

#[test]
fn a_chain_of_ten_thousand_and_as_many_siblings_are_planned_without_recursion() {
    let chain: Vec<_> = (1..=10_000).map(|pid| member(pid, (pid > 1).then(|| pid - 1), 0, 0)).collect();
    assert_eq!(made(&chain[..2000]).expect("a plan").0.steps.len(), 2000);
    assert_eq!(plan(&chain, &mut (500_000..)).expect("a plan").steps.len(), 10_000);
    let wide: Vec<_> = (1..=10_000)
        .map(|pid| member(pid, (pid > 1).then_some(1), pid, if pid > 1 { pid } else { 0 }))
        .collect();
    let wide: Vec<_> = wide.into_iter().map(|m| if m.pid == 1 { member(1, None, 0, 0) } else { m }).collect();
    assert_eq!(plan(&wide, &mut (500_000..)).expect("a plan").steps.len(), 19_999);
}
