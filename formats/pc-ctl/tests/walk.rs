//! Both machines together, in every order in which things can happen.
//!
//! The channels are the worst there can be: what was said once may arrive now, later, again, out of order, or never. Either side
//! may die between any two of its steps, in the middle of a step (its effect took place or not), and any local event (a signal, a
//! time-out, a failed write) may come at any moment. All worlds that can be reached are visited.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::LazyLock;

use pc_ctl::{
    Clocks, Destination, DestinationAction, DestinationEvent, DestinationOutcome, Message, OriginalIfKilled,
    Source, SourceAction, SourceEvent, SourceOutcome, SourceState, Why,
};

const ID: [u8; 16] = [1; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Original {
    Running,
    Stopped,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Copy {
    Nothing,
    Husk,
    Running,
}

/// What the stream can bring to the destination's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Forward {
    Skeleton,
    Final,
    Commit,
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: Source,
    to_do: VecDeque<SourceAction>,
    source_killed: bool,
    outcome: Option<SourceOutcome>,
    original: Original,
    /// Events that the source's driver has yet to report.
    source_owes: BTreeSet<&'static str>,
    destination: Destination,
    dest_to_do: VecDeque<DestinationAction>,
    dest_killed: bool,
    dest_outcome: Option<DestinationOutcome>,
    copy: Copy,
    /// The husks are complete: the final round arrived.
    built: bool,
    releasing: bool,
    forward: BTreeSet<Forward>,
    back: BTreeSet<Message>,
}

/// A fault put into the source, to see that the walk finds it.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    ResumesInDoubt,
    EndsOnReady,
}

impl World {
    fn new() -> World {
        let (destination, first) = Destination::new(Clocks { realtime: 0, monotonic: 0, boottime: 0 }, "");
        World {
            source: Source::new(ID),
            to_do: VecDeque::new(),
            source_killed: false,
            outcome: None,
            original: Original::Running,
            source_owes: BTreeSet::new(),
            destination,
            dest_to_do: first.into(),
            dest_killed: false,
            dest_outcome: None,
            copy: Copy::Nothing,
            built: false,
            releasing: false,
            // Rounds go out from the start; only what decides is modelled.
            forward: [Forward::Skeleton].into(),
            back: BTreeSet::new(),
        }
    }

    fn next(&self, fault: Fault) -> Vec<World> {
        let mut worlds = Vec::new();
        if !self.source_killed {
            match self.to_do.is_empty() {
                false => worlds.extend(self.source_acts(fault)),
                true => worlds.extend(self.source_hears()),
            }
            worlds.push(self.source_dies());
        }
        if !self.dest_killed {
            match self.dest_to_do.is_empty() {
                false => worlds.extend(self.destination_acts()),
                true => worlds.extend(self.destination_hears()),
            }
            worlds.extend(self.destination_dies());
        }
        worlds
    }

    fn source_dies(&self) -> World {
        let mut world = self.clone();
        world.source_killed = true;
        match self.source.if_killed() {
            OriginalIfKilled::Runs if self.original == Original::Stopped => {
                world.original = Original::Running;
            }
            OriginalIfKilled::Runs | OriginalIfKilled::Stopped | OriginalIfKilled::Ended => {}
        }
        world
    }

    /// A copy that runs is detached and does not die with the tool; husks do.
    fn destination_dies(&self) -> Vec<World> {
        let mut world = self.clone();
        world.dest_killed = true;
        if world.copy == Copy::Husk {
            world.copy = Copy::Nothing;
        }
        vec![world]
    }

    fn source_acts(&self, fault: Fault) -> Vec<World> {
        let mut world = self.clone();
        let Some(action) = world.to_do.pop_front() else { return Vec::new() };
        match action {
            SourceAction::Freeze => world.original = Original::Stopped,
            SourceAction::SendFinal => {
                world.forward.insert(Forward::Final);
                world.source_owes.insert("FinalWritten");
            }
            SourceAction::Prepare => {
                world.source_owes.insert("Prepared");
                if fault == Fault::EndsOnReady {
                    world.original = Original::Ended;
                }
            }
            // Whether it gets through is the channel's choice; a failed write may have carried it.
            SourceAction::SendCommit => {
                world.forward.insert(Forward::Commit);
            }
            SourceAction::SendCancel(_) => {
                world.forward.insert(Forward::Cancel);
            }
            SourceAction::Resume => {
                assert_ne!(self.original, Original::Ended);
                world.original = Original::Running;
            }
            SourceAction::EndOriginal => {
                assert_eq!(self.copy, Copy::Running, "the original is ended only for a running copy");
                world.original = Original::Ended;
            }
            SourceAction::Finish(outcome) => {
                if fault == Fault::ResumesInDoubt && matches!(outcome, SourceOutcome::InDoubt(_)) {
                    world.original = Original::Running;
                }
                world.outcome = Some(outcome);
            }
        }
        vec![world]
    }

    fn source_hears(&self) -> Vec<World> {
        let text = String::new;
        let mut events = vec![
            SourceEvent::PeerLost(text()),
            SourceEvent::WriteFailed(text()),
            SourceEvent::Stop,
            SourceEvent::FreezeTimeout,
            SourceEvent::Silence,
            SourceEvent::Interrupted,
            SourceEvent::Failed(text()),
        ];
        events.extend(self.back.iter().cloned().map(SourceEvent::Message));
        let owed = |what: &str, event| self.source_owes.contains(what).then_some(event);
        events.extend(owed("FinalWritten", SourceEvent::FinalWritten));
        events.extend(owed("Prepared", SourceEvent::Prepared));
        let hear = |event: SourceEvent| {
            let mut world = self.clone();
            match event {
                SourceEvent::FinalWritten => world.source_owes.remove("FinalWritten"),
                SourceEvent::Prepared => world.source_owes.remove("Prepared"),
                _ => false,
            };
            let actions = world.source.on(event).into_iter().map(|action| match action {
                SourceAction::SendCancel(_) => SourceAction::SendCancel(Why::Silence),
                SourceAction::Finish(outcome) => SourceAction::Finish(without_reason(outcome)),
                other => other,
            });
            world.to_do = actions.collect();
            world
        };
        events.into_iter().map(hear).collect()
    }

    fn destination_acts(&self) -> Vec<World> {
        let mut world = self.clone();
        let Some(action) = world.dest_to_do.pop_front() else { return Vec::new() };
        match action {
            DestinationAction::Send(message) => {
                world.back.insert(message);
            }
            DestinationAction::Judge => world.copy = Copy::Husk,
            DestinationAction::Release => {
                world.releasing = true;
                let mut failed = world.clone();
                failed.copy = Copy::Nothing;
                assert!(self.built && self.copy == Copy::Husk, "only complete husks are let go");
                world.copy = Copy::Running;
                return vec![world, failed];
            }
            DestinationAction::TearDown => {
                assert_ne!(self.copy, Copy::Running, "a copy that runs is not torn down");
                world.copy = Copy::Nothing;
            }
            DestinationAction::Finish(outcome) => world.dest_outcome = Some(outcome),
        }
        vec![world]
    }

    fn destination_hears(&self) -> Vec<World> {
        let text = String::new;
        let mut events = vec![
            DestinationEvent::Judged(Ok(())),
            DestinationEvent::Judged(Err(text())),
            DestinationEvent::RoundApplied { round: 0, bytes: 0 },
            DestinationEvent::StreamLost(text()),
            DestinationEvent::BackLost(text()),
            DestinationEvent::Silence,
            DestinationEvent::Interrupted,
            DestinationEvent::Failed(text()),
            DestinationEvent::Tick,
        ];
        if self.releasing && self.copy == Copy::Running {
            events.push(DestinationEvent::Released { pid: 1 });
        }
        if self.releasing && self.copy == Copy::Nothing {
            events.push(DestinationEvent::ReleaseFailed(text()));
        }
        if self.built {
            events.push(DestinationEvent::Built);
        }
        let mut worlds: Vec<_> = events.into_iter().map(|event| self.destination_on(event)).collect();
        worlds.extend(self.forward.iter().map(|what| match what {
            Forward::Skeleton => self.destination_on(DestinationEvent::Skeleton { stream_id: ID }),
            Forward::Commit => self.destination_on(DestinationEvent::Commit),
            Forward::Cancel => self.destination_on(DestinationEvent::Cancel(text())),
            Forward::Final => {
                let mut world = self.clone();
                world.built = true;
                world
            }
        }));
        worlds
    }

    fn destination_on(&self, event: DestinationEvent) -> World {
        let mut world = self.clone();
        let actions = world.destination.on(event).into_iter().map(|action| match action {
            DestinationAction::Send(Message::Failed { .. }) => {
                DestinationAction::Send(Message::Failed { reason: String::new() })
            }
            DestinationAction::Send(Message::Lost { .. }) => {
                DestinationAction::Send(Message::Lost { reason: String::new() })
            }
            DestinationAction::Finish(DestinationOutcome::Gone(_)) => {
                DestinationAction::Finish(DestinationOutcome::Gone(Why::Silence))
            }
            other => other,
        });
        world.dest_to_do = actions.collect();
        world
    }

    /// Nothing more will happen on the source's side, or on the destination's.
    fn settled(&self) -> (bool, bool) {
        (
            self.source_killed || (self.source.finished() && self.to_do.is_empty()),
            self.dest_killed || (self.destination.finished() && self.dest_to_do.is_empty()),
        )
    }

    fn check(&self) -> Result<(), String> {
        let running = u8::from(self.original == Original::Running) + u8::from(self.copy == Copy::Running);
        if running > 1 {
            return Err("two are running".into());
        }
        if self.original == Original::Ended && self.copy != Copy::Running {
            return Err("the original is ended and no copy runs".into());
        }
        match &self.outcome {
            Some(SourceOutcome::Kept(_)) if self.original != Original::Running => {
                return Err("kept, but the original does not run".into());
            }
            Some(SourceOutcome::Moved { .. }) if self.copy != Copy::Running => {
                return Err("moved, but no copy runs".into());
            }
            Some(SourceOutcome::InDoubt(_)) if !self.forward.contains(&Forward::Commit) => {
                return Err("in doubt without a Commit".into());
            }
            _ => {}
        }
        if self.settled() == (true, true) && running == 0 {
            let said = matches!(self.outcome, Some(SourceOutcome::InDoubt(_)));
            // A tool that was killed can say nothing; but what it left is stopped, not gone.
            let killed = self.source_killed && self.source.if_killed() != OriginalIfKilled::Runs;
            if self.original != Original::Stopped || !(said || killed) {
                return Err("none is running, and nobody says so".into());
            }
        }
        Ok(())
    }
}

/// Worlds that differ in a reason only are the same.
fn without_reason(outcome: SourceOutcome) -> SourceOutcome {
    match outcome {
        SourceOutcome::Kept(_) => SourceOutcome::Kept(Why::Silence),
        SourceOutcome::InDoubt(_) => SourceOutcome::InDoubt(Why::Silence),
        moved => moved,
    }
}

/// All worlds of the machines as they are, visited once for all tests.
fn worlds() -> &'static HashSet<World> {
    static WORLDS: LazyLock<HashSet<World>> =
        LazyLock::new(|| walk(Fault::None).unwrap_or_else(|wrong| panic!("{wrong}")));
    &WORLDS
}

/// Visits every world; gives how many there are, or what is wrong with one.
fn walk(fault: Fault) -> Result<HashSet<World>, String> {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        world.check().map_err(|what| format!("{what}: {world:#?}"))?;
        for next in world.next(fault) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen)
}

#[test]
fn never_two_and_never_none_in_any_order_of_things() {
    let worlds = worlds();
    println!("{} worlds", worlds.len());
    // All ways to end were seen, so the walk went everywhere.
    let ends = |what: fn(&World) -> bool| assert!(worlds.iter().any(what));
    ends(|w| matches!(w.outcome, Some(SourceOutcome::Moved { .. })) && !w.dest_killed);
    ends(|w| matches!(w.outcome, Some(SourceOutcome::InDoubt(_))) && w.copy == Copy::Running);
    ends(|w| {
        matches!(w.outcome, Some(SourceOutcome::InDoubt(_))) && w.copy == Copy::Nothing && w.settled().1
    });
    // Resumed although Commit was sent, because the destination promised that nothing runs.
    ends(|w| matches!(w.outcome, Some(SourceOutcome::Kept(_))) && w.forward.contains(&Forward::Commit));
    ends(|w| w.source_killed && w.copy == Copy::Running && w.original == Original::Stopped);
    let states: HashSet<SourceState> = worlds.iter().map(|w| w.source.state()).collect();
    assert_eq!(states.len(), 11, "{states:?}");
}

#[test]
fn from_everywhere_time_alone_brings_an_end() {
    for world in worlds() {
        if !world.source_killed && !world.source.finished() {
            let mut source = world.source.clone();
            let _ = source.on(SourceEvent::Silence);
            assert!(source.finished(), "{:?}", world.source.state());
        }
        let mut destination = world.destination.clone();
        if !world.dest_killed && !destination.finished() && !world.releasing {
            let _ = destination.on(DestinationEvent::Silence);
            let released = !world.dest_to_do.is_empty();
            assert!(destination.finished() || released, "{:?}", world.destination.state());
        }
    }
}

#[test]
fn the_walk_finds_faults_that_are_put_in() {
    let wrong = walk(Fault::ResumesInDoubt).unwrap_err();
    assert!(wrong.starts_with("two are running"), "{wrong}");
    let wrong = walk(Fault::EndsOnReady).unwrap_err();
    assert!(wrong.starts_with("the original is ended"), "{wrong}");
}
