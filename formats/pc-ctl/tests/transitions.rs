//! Every pair of state and event, one by one, as the modules' tables have them.

use DestinationState as D;
use SourceState as S;
use pc_ctl::{
    Clocks, Destination, DestinationAction, DestinationEvent, DestinationState, Message, Source,
    SourceAction, SourceEvent, SourceOutcome, SourceState, Why,
};

const ID: [u8; 16] = [1; 16];
const CLOCKS: Clocks = Clocks { realtime: 0, monotonic: 0, boottime: 0 };

fn hello(lowest: u16, highest: u16) -> SourceEvent {
    let producer = String::new();
    SourceEvent::Message(Message::Hello { lowest, highest, clocks: CLOCKS, producer })
}

fn source_events() -> Vec<(&'static str, SourceEvent)> {
    let text = || "x".to_owned();
    let message = SourceEvent::Message;
    vec![
        ("Hello", hello(0, 3)),
        ("Hello from the future", hello(2, 3)),
        ("Accepted", message(Message::Accepted { stream_id: ID })),
        ("Accepted for another", message(Message::Accepted { stream_id: [2; 16] })),
        ("Refused", message(Message::Refused { reason: text() })),
        ("PeerFailed", message(Message::Failed { reason: text() })),
        ("PeerGaveUp", message(Message::Lost { reason: text() })),
        ("Cancelled", message(Message::Cancelled { reason: text() })),
        ("RoundApplied", message(Message::RoundApplied { round: 1, bytes: 2 })),
        ("Alive", message(Message::Alive)),
        ("Ready", message(Message::Ready)),
        ("Running", message(Message::Running { pid: 5 })),
        ("Stop", SourceEvent::Stop),
        ("FinalWritten", SourceEvent::FinalWritten),
        ("Prepared", SourceEvent::Prepared),
        ("WriteFailed", SourceEvent::WriteFailed(text())),
        ("PeerLost", SourceEvent::PeerLost(text())),
        ("Silence", SourceEvent::Silence),
        ("FreezeTimeout", SourceEvent::FreezeTimeout),
        ("Interrupted", SourceEvent::Interrupted),
        ("Failed", SourceEvent::Failed(text())),
    ]
}

/// A source that was led to each state.
fn source_in(state: SourceState) -> Source {
    let message = SourceEvent::Message;
    let accepted = message(Message::Accepted { stream_id: ID });
    let (ready, running) = (message(Message::Ready), message(Message::Running { pid: 5 }));
    let moving = vec![hello(0, 1), accepted];
    let waiting = [moving.clone(), vec![SourceEvent::Stop, SourceEvent::FinalWritten]].concat();
    let committed = [waiting.clone(), vec![ready.clone(), SourceEvent::Prepared]].concat();
    let path = match state {
        S::Greeting => vec![],
        S::Offered => vec![hello(0, 1)],
        S::Moving => moving,
        S::Freezing { ready: false } => [moving, vec![SourceEvent::Stop]].concat(),
        S::Freezing { ready: true } => [moving, vec![SourceEvent::Stop, ready]].concat(),
        S::Waiting => waiting,
        S::Preparing => [waiting, vec![ready]].concat(),
        S::Committed => committed,
        S::Moved => [committed, vec![running]].concat(),
        S::Kept => vec![SourceEvent::Interrupted],
        S::InDoubt => [committed, vec![SourceEvent::Silence]].concat(),
    };
    let mut source = Source::new(ID);
    path.into_iter().for_each(|event| drop(source.on(event)));
    assert_eq!(source.state(), state);
    source
}

const BEFORE_COMMIT: [SourceState; 7] = [
    S::Greeting,
    S::Offered,
    S::Moving,
    S::Freezing { ready: false },
    S::Freezing { ready: true },
    S::Waiting,
    S::Preparing,
];

/// Where the table says that the source goes.
fn source_goes(state: SourceState, event: &str) -> SourceState {
    let frozen = matches!(state, S::Freezing { .. } | S::Waiting | S::Preparing);
    match (state, event) {
        (S::Moved | S::Kept | S::InDoubt, _) => state,
        (_, "Refused" | "PeerGaveUp" | "PeerFailed" | "Cancelled") => S::Kept,
        (S::Committed, "Running") => S::Moved,
        (S::Committed, "PeerLost" | "Silence") => S::InDoubt,
        (S::Committed, _) => S::Committed,
        (_, "WriteFailed" | "PeerLost" | "Silence" | "Interrupted" | "Failed" | "Running") => S::Kept,
        (_, "FreezeTimeout") if frozen => S::Kept,
        (S::Greeting, "Hello") => S::Offered,
        (S::Greeting, "Hello from the future") => S::Kept,
        (S::Offered, "Accepted") => S::Moving,
        (S::Greeting | S::Offered, "Accepted" | "Accepted for another" | "RoundApplied" | "Ready") => S::Kept,
        (S::Moving, "Ready") => S::Kept,
        (S::Moving, "Stop") => S::Freezing { ready: false },
        (S::Freezing { .. }, "Ready") => S::Freezing { ready: true },
        (S::Freezing { ready: false }, "FinalWritten") => S::Waiting,
        (S::Freezing { ready: true }, "FinalWritten") | (S::Waiting, "Ready") => S::Preparing,
        (S::Preparing, "Prepared") => S::Committed,
        (state, _) => state,
    }
}

#[test]
fn every_event_in_every_state_of_the_source() {
    let states = BEFORE_COMMIT.into_iter().chain([S::Committed, S::Moved, S::Kept, S::InDoubt]);
    for state in states {
        for (name, event) in source_events() {
            let mut source = source_in(state);
            let actions = source.on(event);
            let goes = source_goes(state, name);
            assert_eq!(source.state(), goes, "{name} in {state:?}");
            let what = format!("{name} in {state:?}: {actions:?}");
            let finish = matches!(actions.last(), Some(SourceAction::Finish(_)));
            assert_eq!(finish, source.finished() && state != goes, "{what}");
            assert_eq!(
                actions.contains(&SourceAction::SendCommit),
                goes == S::Committed && state != goes,
                "{what}"
            );
            let cancels = actions.iter().any(|action| matches!(action, SourceAction::SendCancel(_)));
            if goes == S::Kept && state != S::Kept {
                assert_eq!(actions[0], SourceAction::Resume, "{what}: the original comes first");
                assert_eq!(cancels, BEFORE_COMMIT.contains(&state) && name != "WriteFailed", "{what}");
            } else {
                assert!(!cancels && !actions.contains(&SourceAction::Resume), "{what}");
            }
            if state == goes {
                assert!(actions.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn reasons_reach_the_outcome() {
    let outcome = |event| match source_in(S::Committed).on(event).pop() {
        Some(SourceAction::Finish(outcome)) => outcome,
        other => panic!("{other:?}"),
    };
    let failed = SourceEvent::Message(Message::Failed { reason: "no room".into() });
    assert_eq!(outcome(failed), SourceOutcome::Kept(Why::PeerFailed("no room".into())));
    let lost = SourceEvent::Message(Message::Lost { reason: "cut".into() });
    assert_eq!(outcome(lost), SourceOutcome::Kept(Why::PeerLost("cut".into())));
    assert_eq!(outcome(SourceEvent::Message(Message::Running { pid: 5 })), SourceOutcome::Moved { pid: 5 });
    assert_eq!(outcome(SourceEvent::Silence), SourceOutcome::InDoubt(Why::Silence));
    assert_eq!(
        Why::Version { lowest: 2, highest: 3 }.to_string(),
        "the destination speaks hand-over versions 2 to 3, this is version 1"
    );
}

fn destination_events() -> Vec<(&'static str, DestinationEvent)> {
    let text = || "x".to_owned();
    vec![
        ("Skeleton", DestinationEvent::Skeleton { stream_id: ID }),
        ("Judged yes", DestinationEvent::Judged(Ok(()))),
        ("Judged no", DestinationEvent::Judged(Err(text()))),
        ("RoundApplied", DestinationEvent::RoundApplied { round: 1, bytes: 2 }),
        ("Built", DestinationEvent::Built),
        ("Commit", DestinationEvent::Commit),
        ("Cancel", DestinationEvent::Cancel(text())),
        ("StreamLost", DestinationEvent::StreamLost(text())),
        ("BackLost", DestinationEvent::BackLost(text())),
        ("Silence", DestinationEvent::Silence),
        ("Interrupted", DestinationEvent::Interrupted),
        ("Failed", DestinationEvent::Failed(text())),
        ("Tick", DestinationEvent::Tick),
        ("Released", DestinationEvent::Released { pid: 5 }),
        ("ReleaseFailed", DestinationEvent::ReleaseFailed(text())),
    ]
}

fn destination_in(state: DestinationState) -> Destination {
    let skeleton = DestinationEvent::Skeleton { stream_id: ID };
    let yes = DestinationEvent::Judged(Ok(()));
    let path = vec![skeleton, yes, DestinationEvent::Built, DestinationEvent::Commit];
    let path = match state {
        D::Listening => &path[..0],
        D::Judging => &path[..1],
        D::Building => &path[..2],
        D::Ready => &path[..3],
        D::Releasing => &path[..],
        D::Runs => &[path, vec![DestinationEvent::Released { pid: 5 }]].concat()[..],
        D::Gone => &[DestinationEvent::Interrupted],
    };
    let (mut destination, first) = Destination::new(CLOCKS, "test");
    assert!(matches!(&first[..], [DestinationAction::Send(Message::Hello { .. })]));
    path.iter().for_each(|event| drop(destination.on(event.clone())));
    assert_eq!(destination.state(), state);
    destination
}

/// Where the table says that the destination goes, and what it says there.
fn destination_goes(state: DestinationState, event: &str) -> (DestinationState, &'static str) {
    match (state, event) {
        (D::Runs | D::Gone, _) => (state, ""),
        (_, "Tick") => (state, "Alive"),
        (D::Releasing, "Released") => (D::Runs, "Running"),
        (D::Releasing, "ReleaseFailed") => (D::Gone, "Failed"),
        (D::Releasing, _) => (state, ""),
        (D::Listening, "Skeleton") => (D::Judging, ""),
        (D::Judging, "Judged yes") => (D::Building, "Accepted"),
        (_, "Judged no") => (D::Gone, "Refused"),
        (D::Building | D::Ready, "RoundApplied") => (state, "RoundApplied"),
        (D::Building, "Built") => (D::Ready, "Ready"),
        (D::Ready, "Commit") => (D::Releasing, ""),
        (D::Ready, "BackLost") => (state, ""),
        (_, "Commit" | "StreamLost" | "BackLost" | "Silence") => (D::Gone, "Lost"),
        (_, "Failed") => (D::Gone, "Failed"),
        (_, "Cancel") => (D::Gone, ""),
        (_, "Interrupted") => (D::Gone, "Cancelled"),
        (state, _) => (state, ""),
    }
}

#[test]
fn every_event_in_every_state_of_the_destination() {
    for state in [D::Listening, D::Judging, D::Building, D::Ready, D::Releasing, D::Runs, D::Gone] {
        for (name, event) in destination_events() {
            let mut destination = destination_in(state);
            let actions = destination.on(event);
            let (goes, says) = destination_goes(state, name);
            let what = format!("{name} in {state:?}: {actions:?}");
            assert_eq!(destination.state(), goes, "{what}");
            let said = actions.iter().find_map(|action| match action {
                DestinationAction::Send(message) => Some(message.name()),
                _ => None,
            });
            assert_eq!(said.unwrap_or(""), says, "{what}");
            let finish = matches!(actions.last(), Some(DestinationAction::Finish(_)));
            assert_eq!(finish, destination.finished() && state != goes, "{what}");
            let releases = actions.contains(&DestinationAction::Release);
            assert_eq!(releases, goes == D::Releasing && state != goes, "{what}");
            // Nothing is promised before the husks are dead.
            let torn = actions.first() == Some(&DestinationAction::TearDown);
            assert_eq!(torn, goes == D::Gone && state != goes, "{what}");
        }
    }
}
