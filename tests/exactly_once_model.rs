//! A model of the protocol that commits transactional work exactly once, searched through: every order in which the
//! steps of workers, queue, target and rescuer can come, with every fault between any two of them. The real thing has
//! its own tests; here it is the protocol that is tested, and that each of its parts is needed.
//!
//! **Modelled.** One job, of one transaction or of two batches. Each attempt has a process and a lease of its own, and does
//! on the target what is left to do, one transaction after the other. A
//! write to the queue is checked first and seen by others later; its answer later still. A COMMIT that was sent is
//! executed later, or never. The target's log has a part that is flushed and a part that a synchronous standby has;
//! a crash keeps the first and any piece of the rest, and hands out again the xids that it forgot. Somebody else's
//! transactions take xids. Whoever takes a job over does it in the steps of [`Settle`].
//!
//! **Left to the order of the steps.** A worker that was killed is one that never takes another step; one that was cut
//! off or stopped is declared dead and takes them all the same: both are [`Event::IsBuried`]. A queue or a target
//! that is away for a while is one whose steps come late. A worker may begin although it was buried, which the real
//! one is refused: nothing here rests on that.
//!
//! **Not modelled.** More than two batches; a session that is lost between them, behind which the model's worker begins the
//! next one all the same; two primaries of one target at the same time; a standby that is declared synchronous and
//! isn't; a failover of the queue that loses what was acknowledged; timelines that two promotions number alike; an
//! older copy of the target's disk put back in place.
//!
//! **Bounds.** [`ATTEMPTS`] attempts, [`OTHERS`] transactions of somebody else's, two faults. With four faults a search
//! has 2 million states, and finds nothing either.
//!
//! [`State`] and what it is made of are here, [`steps`] has the protocol, [`faults`] what comes between, [`search()`]
//! what must hold. To see what each [`Flaw`] leads to: `cargo test --test all -- --nocapture every_part`.

mod faults;
mod search;
mod state;
mod steps;

use std::collections::BTreeSet;

use search::search;

/// Attempts that a job has before it ends as `poison`. Lease and number of the attempt are the same.
const ATTEMPTS: usize = 3;
/// Transactions of somebody else's.
const OTHERS: u8 = 2;
/// The most batches of a job.
const BATCHES: usize = 2;
/// Entries in the target's log: a message and a commit for each batch of each attempt, a commit for each of the others.
const LOG: usize = 2 * ATTEMPTS * BATCHES + OTHERS as usize;

/// What a search assumes.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// The target has a synchronous standby and is declared so; or it has an asynchronous one and isn't.
    synchronous: bool,
    /// Transactions that the job consists of.
    batches: u8,
    faults: u8,
    /// The interruption that is one too many.
    poison_at: u8,
    flaw: Option<Flaw>,
}

/// A part of the protocol that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Step 1: the log needn't have anything of the transaction when it is flushed.
    NoMessage,
    /// Step 2.
    NoFlush,
    /// Step 2 doesn't wait for the synchronous standby.
    FlushedHereOnly,
    /// After step 2 nobody makes sure that the first session is still there: the other one may have flushed the log
    /// of a server that had restarted, and forgotten the message.
    SessionNotAsked,
    /// Step 3 is written by whoever comes.
    NoFence,
    /// Step 3 is acknowledged before the queue has it on disk.
    RecordNotDurable,
    /// Step 3 comes after step 4.
    RecordAfterCommit,
    /// Step 4 with `synchronous_commit = off`.
    CommitNotDurable,
    /// The record is read first, and the sessions are ended then.
    SessionsEndedTooLate,
    /// Nobody ends a session.
    SessionsNotEnded,
    /// A record of another timeline is believed, though the target isn't declared synchronous.
    TimelineNotCompared,
    /// A record of another system is believed.
    SystemNotCompared,
    /// `committed` is believed before the log is flushed, on the standby too.
    CommittedNotFlushed,
    /// A COMMIT whose wait for the standby was cancelled counts like any other.
    WarningIgnored,
    /// A standby that answers in place of the primary is believed.
    StandbyAsked,
    /// A worker says `cancelled` when it has told COMMIT to stop, without its answer.
    CancelledUnanswered,
    /// A worker that shuts down hands the job back without the answer to its COMMIT.
    HandedBackUnanswered,
    /// An orphan whose cancellation was asked for ends as `cancelled`, its record unread.
    CancelledUnread,
    /// An orphan that was interrupted once too often ends as `poison`, its record unread.
    PoisonUnread,
    /// Nobody looks for orphans.
    NobodyRescues,
    /// The record of a batch moves the cursor behind it at once.
    CursorMovedEarly,
    /// The record of the next batch doesn't move the cursor behind the one before.
    CursorNotMoved,
    /// Whoever hears from the target that a batch was committed doesn't move the cursor.
    CursorNotMovedBySettling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum JobState {
    Queued,
    Running,
    Succeeded,
    Cancelled,
    Failed(Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    OutcomeUnknown,
    Timeout,
    Poison,
}

/// What is to be written about an attempt when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Finished(JobState),
    /// It had no effect, and the job may run again.
    HandBack,
}

/// Why a worker is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stop {
    Cancel,
    Deadline,
    Shutdown,
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Its claim is to come.
    Absent,
    /// It has the job, and no session yet.
    Claimed,
    /// Its transaction has an xid, and the work is done.
    Worked,
    /// Step 1: the message is in the log.
    Emitted,
    /// Step 2: the log is flushed up to there.
    Flushed,
    /// Step 3 is sent.
    Recording,
    /// Step 3 is answered, and step 4 sent at once.
    Committing,
    /// It finds out what came of it, or writes the end.
    Settling(Settle),
    /// It has no more to do with this job.
    Gone,
}

/// How an attempt is settled, by its own worker under its lease, or by the rescuer once the worker is buried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Settle {
    /// First, so that no COMMIT comes after what is read next.
    EndSession,
    /// None: COMMIT was never sent.
    ReadRecord,
    /// System, timeline and `pg_xact_status` on one session of the primary, and after `committed` a flush on the same
    /// one. A crash in between ends the session, and all is asked again: here it is one step.
    AskTarget,
    /// Under the lease of the attempt.
    Write(End),
}

/// Step 3 on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Record {
    None,
    /// The fence let it pass: by what the statement saw when it began.
    Checked,
    /// Others see it.
    Written,
    Refused,
}

/// An attempt's session on the target, as the server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Session {
    Absent,
    InTransaction,
    /// COMMIT has arrived, or is about to.
    CommitSent,
    /// Committed here, and waiting for the standby: in progress to everybody else.
    AwaitsStandby,
    /// COMMIT was answered.
    Committed,
    /// COMMIT was answered with a warning: its wait for the standby was cancelled.
    CommittedHere,
    /// COMMIT was cancelled before it was executed, and answered with an error.
    RolledBack,
    /// Closed, whoever did it.
    Over,
}

/// A transaction, as a record names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    xid: u8,
    system: u8,
    timeline: u8,
    /// From 1.
    batch: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Worker {
    step: Step,
    session: Session,
    record: Record,
    /// Its transaction.
    mark: Mark,
    /// What the record says: of this transaction, or of the batch before.
    kept: Option<Mark>,
    /// The batch of the record is committed: it heard the answer.
    knows: bool,
    stop: Option<Stop>,
    /// It was taken off the list of the living, because no beat of it arrived.
    buried: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    state: JobState,
    lease: u8,
    interruptions: u8,
    cancel_requested: bool,
    /// The cursor: batches that are done, as far as the queue knows.
    done: u8,
}

/// What the target's log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Message {
        xid: u8,
    },
    /// `effect`: the batch, or 0.
    Commit {
        xid: u8,
        effect: u8,
    },
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Target {
    system: u8,
    timeline: u8,
    log: [Entry; LOG],
    written: u8,
    flushed: u8,
    /// The synchronous standby has this much of it for certain; of an asynchronous one nothing is certain.
    on_standby: u8,
    next_xid: u8,
    /// The last xid of what was taken off the log's beginning.
    last_xid: u8,
    /// Effects that were taken off the log's beginning, or that came with the copy from which this system was made.
    copied: [u8; BATCHES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum XactStatus {
    Committed,
    Aborted,
    InProgress,
    /// `pg_xact_status` refuses it: 22023.
    InTheFuture,
    TooOld,
}

/// Everything, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    job: Job,
    workers: [Worker; ATTEMPTS],
    rescuer: Option<(usize, Settle)>,
    target: Target,
    others_left: u8,
    faults_left: u8,
    /// The target was asked about an xid that it had forgotten.
    forgot: bool,
    /// The target lost a commit after somebody had been told of it. No protocol helps against that. Whoever asks after
    /// the loss must still not say `succeeded`.
    lost_what_was_seen: bool,
}

/// A step of somebody's, with the number of the attempt, from 0. The story of a search is a list of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Claims(usize),
    BeginsAndWorks(usize),
    EmitsMessage(usize),
    FlushesByAnotherSession(usize),
    /// And the queue looks whether it passes the fence.
    SendsRecord(usize),
    QueueWritesRecord(usize),
    SendsCommit(usize),
    /// And flushes it.
    TargetExecutesCommit(usize),
    StandbyConfirmsCommit(usize),
    HearsOfCommit(usize),
    RollsBack(usize),
    /// A cancel is sent to a COMMIT that hasn't answered.
    PressesCommit(usize),
    /// Its answer isn't waited for any longer.
    GivesCommitUp(usize),
    EndsSession(usize),
    ReadsRecord(usize),
    AsksTarget(usize),
    WritesEnd(usize),
    SomebodyElseCommits,
    // From here on, faults.
    /// No beat of it arrived: the rescuer takes its job over.
    IsBuried(usize),
    LosesAnswerToRecord(usize),
    LosesAnswerToCommit(usize),
    /// The target has forgotten what became of so old an xid.
    TargetForgot(usize),
    /// Who asks the target is led to its standby.
    ReachesStandby(usize),
    CancelIsRequested,
    DeadlinePasses(usize),
    ShutsDown(usize),
    QueueCrashes,
    /// And comes back with so many entries of its log.
    TargetCrashes(u8),
    /// To a standby that has so many.
    TargetFailsOver(u8),
    /// By another system, made from a copy that has all effects so far, or none.
    TargetIsReplaced {
        copied: bool,
    },
}

type Moves = Vec<(Event, State)>;

const TWICE: &str = "the effect is there twice";
const NO_EFFECT: &str = "succeeded without an effect";
const CANCELLED: &str = "cancelled with an effect that isn't told";
const FAILED: &str = "failed with an effect that isn't told";
const UNTRUE: &str = "an effect is told that isn't there";
const KNOWABLE: &str = "the outcome could have been known";
const STUCK: &str = "the job can't end any more";

/// The right protocol on a target of either sort.
fn rules(synchronous: bool) -> Rules {
    Rules { synchronous, batches: 1, faults: 2, poison_at: 3, flaw: None }
}

fn holds(rules: &Rules, endings: &[&str]) {
    let found = search(rules, None);
    assert!(found.wrong.is_none(), "{rules:?}: {}", found.story());
    assert!(found.states > 10_000, "{rules:?}: only {} states", found.states);
    let expected: BTreeSet<String> = endings.iter().map(|&ending| ending.to_owned()).collect();
    assert_eq!(found.endings, expected, "{rules:?}");
}

#[test]
fn effects_are_there_once_on_a_synchronous_target() {
    holds(&rules(true), &["Cancelled", "Failed(OutcomeUnknown)", "Failed(Timeout)", "Succeeded"]);
}

#[test]
fn effects_are_there_once_on_an_asynchronous_target() {
    holds(&rules(false), &["Cancelled", "Failed(OutcomeUnknown)", "Failed(Timeout)", "Succeeded"]);
}

#[test]
fn effects_are_there_once_when_interruptions_run_out() {
    let endings = ["Cancelled", "Failed(OutcomeUnknown)", "Failed(Poison)", "Failed(Timeout)", "Succeeded"];
    holds(&Rules { poison_at: 2, ..rules(true) }, &endings);
}

#[test]
fn batches_are_there_once_each() {
    for synchronous in [true, false] {
        let endings = ["Cancelled", "Failed(OutcomeUnknown)", "Failed(Poison)", "Failed(Timeout)", "Succeeded"];
        holds(&Rules { batches: 2, poison_at: 2, ..rules(synchronous) }, &endings);
        holds(
            &Rules { batches: 2, ..rules(synchronous) },
            &endings.map(|e| if e.contains("Poison") { "Succeeded" } else { e }),
        );
    }
}

/// Each part of the protocol, left out, and what comes of it.
#[test]
fn every_part_is_needed() {
    let asynchronous = [
        (Flaw::NoMessage, NO_EFFECT),
        (Flaw::NoFlush, NO_EFFECT),
        (Flaw::SessionNotAsked, NO_EFFECT),
        (Flaw::NoFence, TWICE),
        (Flaw::RecordNotDurable, TWICE),
        (Flaw::RecordAfterCommit, TWICE),
        (Flaw::CommitNotDurable, NO_EFFECT),
        (Flaw::SessionsEndedTooLate, TWICE),
        (Flaw::SessionsNotEnded, STUCK),
        (Flaw::TimelineNotCompared, NO_EFFECT),
        (Flaw::SystemNotCompared, NO_EFFECT),
        (Flaw::CancelledUnanswered, CANCELLED),
        (Flaw::HandedBackUnanswered, TWICE),
        (Flaw::CancelledUnread, CANCELLED),
        (Flaw::PoisonUnread, FAILED),
        (Flaw::NobodyRescues, STUCK),
        (Flaw::CursorMovedEarly, NO_EFFECT),
        (Flaw::CursorNotMoved, TWICE),
        (Flaw::CursorNotMovedBySettling, TWICE),
    ];
    let synchronous = [
        (Flaw::FlushedHereOnly, NO_EFFECT),
        (Flaw::SessionNotAsked, NO_EFFECT),
        (Flaw::CommittedNotFlushed, NO_EFFECT),
        (Flaw::WarningIgnored, NO_EFFECT),
        (Flaw::StandbyAsked, TWICE),
    ];
    let sorts = [(false, asynchronous.as_slice()), (true, synchronous.as_slice())];
    for (sort, (flaw, wrong)) in sorts.into_iter().flat_map(|(sort, flaws)| flaws.iter().map(move |f| (sort, *f))) {
        let poison_at = if flaw == Flaw::PoisonUnread { 1 } else { 3 };
        use Flaw::{CursorMovedEarly, CursorNotMoved, CursorNotMovedBySettling};
        let batches = if matches!(flaw, CursorMovedEarly | CursorNotMoved | CursorNotMovedBySettling) { 2 } else { 1 };
        // Most need only one fault, and with one there is little to search.
        let with = |faults| search(&Rules { batches, faults, poison_at, flaw: Some(flaw), ..rules(sort) }, Some(wrong));
        let found = (1..=2).map(with).find(|found| found.wrong.is_some());
        let found = found.unwrap_or_else(|| panic!("{flaw:?}: no way to `{wrong}` was found"));
        println!("{flaw:?}: {}", found.story());
    }
}
