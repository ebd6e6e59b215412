//! What nobody else does: jobs of dead processes are rescued, days of history made and dropped, results expired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::PgConnection;

use crate::db::DbError;
use crate::queue::fleet::clock::CautiousClock;
use crate::queue::fleet::orphans::{self, Orphan};
use crate::queue::fleet::sightings::Sightings;
use crate::queue::fleet::workers::{self, DEAD_AFTER, Sighted};
use crate::queue::intake::insert;
use crate::queue::lifecycle::checkpoint;
use crate::queue::lifecycle::end::Ending;
use crate::queue::lifecycle::leavings;
use crate::queue::record::history;
use crate::queue::record::partitions;
use crate::queue::record::progress;
use crate::queue::record::report::{self, Attempted};
use crate::results::store;
use crate::target::{Target, TargetBackend};
use crate::uploads;
use crate::worker::settle::{Obstacle, settle};
use crate::worker::threads::{Threads, jittered};
use crate::worker::{Shared, executor};

/// Between two looks for the dead.
const RESCUE_EVERY: Duration = Duration::from_secs(2);
/// Between two rounds of housekeeping.
const KEEP_HOUSE_EVERY: Duration = Duration::from_secs(30);
/// Orphans taken in one look.
const BATCH: i64 = 100;
/// Results and parts removed by one statement.
const RESULTS_BATCH: i64 = 100;
/// How long deleting uploads may take in one round: the dead must not wait for it.
const UPLOADS_PATIENCE: Duration = Duration::from_secs(2);

/// How long what work took is remembered.
const HISTORY_DAYS: i64 = 180;

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    threads.spawn("slowlane-janitor", move || Janitor::new(&shared).serve())
}

struct Janitor<'s> {
    shared: &'s Shared,
    /// The session, and since when it is there: right after an outage everybody looks dead.
    connection: Option<(PgConnection, Instant)>,
    /// Since this session began: whoever was cut off has seen nobody beat.
    sightings: Sightings,
    clock: CautiousClock,
    kept: Option<Instant>,
}

impl<'s> Janitor<'s> {
    fn new(shared: &'s Shared) -> Janitor<'s> {
        Janitor {
            shared,
            connection: None,
            sightings: Sightings::default(),
            clock: CautiousClock::default(),
            kept: None,
        }
    }

    fn serve(&mut self) {
        let mut failing = false;
        while !self.shared.stop.is_set() {
            match self.round() {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        log::warn!("housekeeping failed, and is tried again: {error}");
                    }
                    if error.is_unavailable() {
                        self.connection = None;
                    }
                }
            }
            self.shared.stop.wait(jittered(RESCUE_EVERY));
        }
    }

    fn round(&mut self) -> Result<(), DbError> {
        let (connection, since) = match &mut self.connection {
            Some((connection, since)) => (connection, *since),
            none => {
                let (connection, since) = none.insert((self.shared.manager("janitor").open()?, Instant::now()));
                self.sightings = Sightings::default();
                (connection, *since)
            }
        };
        let dead = self.sightings.look(connection)?;
        if self.kept.is_none_or(|at| at.elapsed() >= KEEP_HOUSE_EVERY) {
            self.kept = Some(Instant::now());
            let now = self.clock.now(connection)?;
            keep_house(self.shared, connection, now, &dead)?;
        }
        if since.elapsed() >= DEAD_AFTER && is_present(self.shared) {
            rescue_orphans(self.shared, connection, &dead)
        } else {
            Ok(())
        }
    }
}

/// A process that was itself away, stopped or cut off, would take everybody for dead, itself included. It is present
/// again when its own beats have come for as long as a dead process must have been silent.
fn is_present(shared: &Shared) -> bool {
    shared.config.health.steady_for() >= DEAD_AFTER
}

/// One look for jobs whose owner is dead. Where their sessions on the target can't be ended, they wait for the next
/// look. Finding that out takes time: targets that are known to be away come last.
fn rescue_orphans(shared: &Shared, connection: &mut PgConnection, dead: &[Sighted]) -> Result<(), DbError> {
    let targets = shared.config.targets.iter();
    let (well, away): (Vec<_>, Vec<_>) = targets.partition(|(_, target)| target.trouble().is_none());
    for some in [well, away] {
        rescue_on(shared, connection, dead, some.into_iter().map(|(name, _)| name.clone()).collect())?;
    }
    Ok(())
}

fn rescue_on(
    shared: &Shared,
    connection: &mut PgConnection,
    dead: &[Sighted],
    mut targets: Vec<String>,
) -> Result<(), DbError> {
    while !targets.is_empty() {
        let orphans = orphans::orphans(connection, &shared.kinds(), &targets, dead, BATCH)?;
        let mut unreachable = None;
        for orphan in &orphans {
            // What was read may have been on its way for long.
            if !is_present(shared) {
                return Ok(());
            }
            match rescue(shared, connection, orphan) {
                Ok(()) => {}
                // One session that takes its time says nothing about the others.
                Err(Obstacle::Target(error @ DbError::Busy(_))) => {
                    log::warn!(job = orphan.lease.job_id.to_string(); "a session of a dead worker is still ending, and its job waits: {error}");
                }
                Err(error @ (Obstacle::Target(_) | Obstacle::NoTarget(_))) => {
                    log::warn!(target = orphan.target.as_str(); "the sessions of a dead worker can't be ended yet, and its jobs wait: {error}");
                    unreachable = Some(orphan.target.clone());
                    break;
                }
                Err(Obstacle::Queue(error)) if error.is_unavailable() => return Err(error),
                Err(Obstacle::Queue(error)) => {
                    log::error!(job = orphan.lease.job_id.to_string(); "a job of a dead worker can't be rescued, and is tried again: {error}");
                }
            }
        }
        // One target that can't be reached holds up no other's jobs.
        match unreachable {
            Some(target) => targets.retain(|name| *name != target),
            None => return Ok(()),
        }
    }
    Ok(())
}

/// The owner is buried first: from then on it begins nothing. Then its sessions are ended, and what became of its
/// transaction is found out; only then the job is free.
fn rescue(shared: &Shared, connection: &mut PgConnection, orphan: &Orphan) -> Result<(), Obstacle> {
    if !workers::bury(connection, orphan.lease.worker_id, orphan.beat).map_err(Obstacle::Queue)? {
        return Ok(());
    }
    let Some(target) = shared.config.targets.get(&orphan.target) else {
        return Err(Obstacle::NoTarget(orphan.target.clone()));
    };
    end_sessions(target, orphan).map_err(Obstacle::Target)?;
    let settled = executor::end_of(settle(connection, target, &orphan.lease)?);
    let mut ending = settled.unwrap_or_else(|| orphans::ending_of(orphan, shared.config.repeatable(&orphan.kind)));
    if let Ending::Finished(finished) = &mut ending {
        finished.interrupted = true;
    }
    if let Some(became) = orphans::rescue(connection, orphan, ending.clone()).map_err(Obstacle::Queue)? {
        let job = orphan.lease.job_id.to_string();
        log::warn!(job = job, worker = orphan.lease.worker_id.to_string(); "took a job from a dead worker");
        report::ended(&attempted(orphan), &ending, became);
        shared.config.metrics.finished(&orphan.kind, "rescued");
        shared.config.signals.job_changed(orphan.lease.job_id);
        shared.slots.wake(&[]);
    }
    Ok(())
}

fn attempted(orphan: &Orphan) -> Attempted<'_> {
    Attempted {
        job_id: orphan.lease.job_id,
        kind: &orphan.kind,
        target: &orphan.target,
        attempt: orphan.attempt,
        took: u64::try_from(orphan.age_ms).ok().map(Duration::from_millis),
    }
}

fn end_sessions(target: &Target, orphan: &Orphan) -> Result<(), DbError> {
    let backend = orphan.backend_pid.zip(orphan.backend_start);
    let backend = backend.map(|(pid, backend_start)| TargetBackend { pid, backend_start });
    target.end_sessions(&orphan.lease.application_name(), backend.as_slice())
}

/// What expires does so at `now`.
fn keep_house(
    shared: &Shared,
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    dead: &[Sighted],
) -> Result<(), DbError> {
    partitions::ensure(connection)?;
    expire_results(shared, connection, now)?;
    store::sweep_orphans(connection, RESULTS_BATCH)?;
    uploads::store::sweep(connection, now, UPLOADS_PATIENCE)?;
    insert::forget_old_keys(connection, now)?;
    progress::sweep(connection)?;
    history::sweep(connection, HISTORY_DAYS)?;
    checkpoint::sweep(connection)?;
    leavings::sweep(connection, now)?;
    workers::forget_the_dead(connection, dead)?;
    let retention = TimeDelta::from_std(shared.config.retention).unwrap_or(TimeDelta::MAX);
    if let Some(keep_from) = now.checked_sub_signed(retention) {
        let days = partitions::retire(connection, keep_from)?;
        if days > 0 {
            log::info!(days = days; "dropped days of history that are past their retention");
        }
    }
    Ok(())
}

fn expire_results(shared: &Shared, connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), DbError> {
    loop {
        let expired = store::expire(connection, now, RESULTS_BATCH)?;
        if expired.is_empty() {
            return Ok(());
        }
        shared.config.signals.jobs_changed(expired);
    }
}
