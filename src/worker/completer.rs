//! Writes how attempts ended: at once when one ends alone, many by one statement under load, and as often as it
//! takes while the queue can't be reached.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::db::DbError;
use crate::queue::lifecycle::end::{Became, Ending, Finished, Held};
use crate::queue::lifecycle::finish::{self};
use crate::queue::model::JobState;
use crate::queue::record::history::{self, Run};
use crate::queue::record::log::LogLine;
use crate::queue::record::report::{self};
use crate::queue::{ErrorCode, JobError, Lease};
use crate::worker::Shared;
use crate::worker::ended::Ended;
use crate::worker::threads::{Growing, Threads};

/// Ends written by one statement.
const MAX_GROUP: usize = 500;
/// While more ends than these wait to be written, nothing is claimed: what runs is to be what the rows say that runs.
pub(super) const MAX_WAITING: usize = 2 * MAX_GROUP;
/// The pauses before an end is tried again: the first, and the longest.
const AFTER_ERROR: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// How often an end that is refused alone is tried again.
const MAX_REFUSALS: i32 = 10;
/// The same, for one with a log: it may well be the log that is refused.
const MAX_REFUSALS_WITH_LOG: i32 = 3;
/// How often a group that takes too long is tried again as a whole.
const MAX_TIMEOUTS: i32 = 3;

pub(super) fn start(shared: &Arc<Shared>, told: Receiver<Ended>, threads: &mut Threads) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-finish", move || serve(&shared, &told))
}

fn serve(shared: &Shared, told: &Receiver<Ended>) {
    while !shared.stop.is_set() {
        let first = match told.recv_timeout(Duration::from_millis(500)) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let group: Vec<Ended> = std::iter::once(first).chain(told.try_iter().take(MAX_GROUP - 1)).collect();
        let _taken_on = Group { shared, leases: group.iter().map(|ended| ended.lease).collect() };
        write(shared, group);
    }
}

/// Ends that were taken on. However that ends, nobody waits for them any more: what could not be stored is found by
/// the heartbeat, and put back.
struct Group<'s> {
    shared: &'s Shared,
    leases: Vec<Lease>,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.leases.iter().for_each(|lease| self.shared.running.unwritten(lease));
        }
        self.shared.running.ended(&self.leases);
    }
}

/// A group that is refused, or takes too long again and again, is written one by one. One that is refused alone is
/// written without its log, and when that is refused too it ends plainly: no job is left running for ever
/// because its end can't be stored.
fn write(shared: &Shared, mut group: Vec<Ended>) {
    if group.len() > 1 {
        match write_group(shared, &group, Some(MAX_TIMEOUTS)) {
            Ok(held) => return told_everybody(shared, &group, &held),
            Err(error) => log::warn!("a group of ends was refused, and is written one by one: {error}"),
        }
        // What somebody holds up comes last, so that it holds up none of the others.
        group = group.into_iter().filter_map(|ended| write_alone(shared, ended, Some(1))).collect();
    }
    for ended in group {
        write_alone(shared, ended, None);
    }
}

/// Gives the end back when it took too long `timeouts` times.
fn write_alone(shared: &Shared, ended: Ended, timeouts: Option<i32>) -> Option<Ended> {
    let group = [ended];
    let refused = write_group(shared, &group, timeouts);
    let [ended] = group;
    match refused {
        Ok(held) => told_everybody(shared, &[ended], &held),
        Err(error) if shared.stop.is_set() => log::warn!("an end could not be written before stopping: {error}"),
        Err(DbError::Busy(_)) => return Some(ended),
        Err(error) => {
            log::error!(job = ended.lease.job_id.to_string(); "the end of an attempt was refused: {error}");
            write_less(shared, ended);
        }
    }
    None
}

/// Writes an end that was refused: as it is and without its log, or else as a plain end.
fn write_less(shared: &Shared, ended: Ended) {
    if !ended.log.is_empty() {
        let group = [Ended { log: Vec::new(), ..ended.clone() }];
        match write_group(shared, &group, None) {
            Ok(held) => {
                let lines = ended.log.len();
                log::warn!(job = ended.lease.job_id.to_string(), lines = lines; "what an attempt said last could not be stored; its end was");
                return told_everybody(shared, &group, &held);
            }
            Err(error) if shared.stop.is_set() => {
                return log::warn!("an end could not be written before stopping: {error}");
            }
            Err(error) => {
                log::error!(job = ended.lease.job_id.to_string(); "the end of an attempt was refused without its log, too: {error}");
            }
        }
    }
    write_plain_end(shared, ended);
}

/// What has taken effect has succeeded, with or without its output; anything else has failed.
fn write_plain_end(shared: &Shared, ended: Ended) {
    let error = JobError::new(ErrorCode::Internal, "the end of this job could not be stored; the log says why");
    let settled = match &ended.ending {
        Ending::Finished(finished) if finished.state == JobState::Succeeded => finished.settled.clone(),
        _ => None,
    };
    let ending = Ending::from(match settled {
        Some(_) => Finished { settled, ..Finished::plain(JobState::Succeeded) },
        None => Finished::failed(error),
    });
    let group = [Ended { ending, log: Vec::new(), ..ended }];
    match write_group(shared, &group, None) {
        Ok(held) => told_everybody(shared, &group, &held),
        Err(error) => {
            log::error!("not even a plain end could be stored: {error}");
            group.iter().for_each(|ended| shared.running.unwritten(&ended.lease));
        }
    }
}

/// `timeouts`: after so many the error is the caller's; until it works when there is no such number.
fn write_group(shared: &Shared, group: &[Ended], mut timeouts: Option<i32>) -> Result<Held, DbError> {
    let endings: Vec<(Lease, Ending)> = group.iter().map(|ended| (ended.lease, ended.ending.clone())).collect();
    let talkers = group.iter().filter(|ended| !ended.log.is_empty());
    let lines: Vec<(Lease, Vec<LogLine>)> = talkers.map(|ended| (ended.lease, ended.log.clone())).collect();
    let mut refusals = match group {
        [_] if lines.is_empty() => MAX_REFUSALS,
        [_] => MAX_REFUSALS_WITH_LOG,
        _ => 0,
    };
    let mut failing = false;
    let mut pause = Growing::new(AFTER_ERROR.0, AFTER_ERROR.1);
    loop {
        let outcome = match shared.config.control.get() {
            Ok(mut connection) => {
                let outcome = finish::end_with_log(&mut connection, &endings, &lines);
                if let (Err(DbError::Busy(_)), Some(left)) = (&outcome, &mut timeouts) {
                    *left -= 1;
                }
                outcome
            }
            Err(error) => Err(error),
        };
        match outcome {
            Err(DbError::Busy(_)) if timeouts.is_some_and(|left| left <= 0) => return outcome,
            Err(error @ (DbError::Unavailable(_) | DbError::Busy(_))) => {
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("the ends of attempts can't be written, and are tried again: {error}");
                }
                if shared.stop.wait(pause.next_pause()) {
                    return Err(error);
                }
            }
            Err(error) if group.len() == 1 && (error.passes() || refusals > 0) => {
                refusals -= i32::from(!error.passes());
                log::warn!("the end of an attempt was refused, and is tried again: {error}");
                if shared.stop.wait(pause.next_pause()) {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

fn told_everybody(shared: &Shared, group: &[Ended], held: &Held) {
    for ended in group {
        let id = ended.lease.job_id;
        let Some(became) = held.get(&id) else {
            log::info!(job = id.to_string(); "the lease was lost: the end of this attempt is not written");
            continue;
        };
        report::ended(&ended.attempted(), &ended.ending, *became);
        shared.config.metrics.finished(&ended.kind, outcome(&ended.ending, *became));
        if *became == Became::AsSaid && matches!(ended.ending, Ending::Retry { .. } | Ending::Snooze { .. }) {
            shared.config.signals.scheduled();
        }
    }
    shared.config.signals.jobs_changed(held.keys().copied().collect());
    remember(shared, group.iter().filter(|ended| held.contains_key(&ended.lease.job_id)));
}

/// What it took is no part of a job's end: where it can't be stored, it is forgotten.
fn remember<'e>(shared: &Shared, ended: impl Iterator<Item = &'e Ended>) {
    let runs: Vec<Run> = ended.filter_map(|ended| ended.run.clone()).collect();
    if runs.is_empty() {
        return;
    }
    let outcome = shared.config.control.get().and_then(|mut connection| history::remember(&mut connection, &runs));
    if let Err(error) = outcome {
        log::info!("what jobs took could not be remembered: {error}");
    }
}

fn outcome(ending: &Ending, became: Became) -> &'static str {
    match ending {
        _ if became == Became::Cancelled => JobState::Cancelled.as_str(),
        _ if became == Became::Poison => JobState::Failed.as_str(),
        _ if became == Became::Paused => JobState::Paused.as_str(),
        Ending::Finished(finished) => finished.state.as_str(),
        Ending::Retry { .. } => "retried",
        Ending::Snooze { .. } => "snoozed",
        // A pause that was withdrawn meanwhile hands it back.
        Ending::HandBack { .. } | Ending::Pause => "interrupted",
    }
}
