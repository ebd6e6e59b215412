//! Beats on a connection of its own, brings requests to cancel or to pause back, and writes
//! progress.
//!
//! A process that was declared dead learns it here: it stops what it runs, and goes on under a new id. What its rows
//! say that it runs is compared with what it does run.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::Lease;
use crate::queue::fleet::orphans::{self, Held};
use crate::queue::fleet::signals::Message;
use crate::queue::fleet::workers::{self, BEAT_EVERY};
use crate::queue::lifecycle::cancel;
use crate::queue::lifecycle::cancel::Asked;
use crate::queue::lifecycle::checkpoint;
use crate::queue::lifecycle::end::Interruption;
use crate::queue::lifecycle::end::{Became, Ending};
use crate::queue::lifecycle::finish;
use crate::queue::lifecycle::interruptions::interrupted;
use crate::queue::record::log::{self as job_log, LogLine};
use crate::queue::record::progress;
use crate::queue::record::report::{self, Attempted};
use crate::work::StopReason;
use crate::worker::Shared;
use crate::worker::health::Healths;
use crate::worker::running::Attempt;
use crate::worker::threads::{Threads, jittered};

/// Between two looks for requests to cancel or to pause: how late one may be without NOTIFY.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A row that is ours and that nobody works on is put back after so long: before, the answer to its claim may be on its way.
const LOST_AFTER: Duration = Duration::from_secs(10);

pub(super) fn start(shared: &Arc<Shared>, threads: &mut Threads) -> std::io::Result<()> {
    let listener = Arc::downgrade(shared);
    shared.config.signals.on_hint(move |message| {
        let (ids, reason) = match message {
            Message::Cancel(ids) => (ids, StopReason::Cancel),
            Message::Pause(ids) => (ids, StopReason::Pause),
            _ => return,
        };
        if let Some(shared) = listener.upgrade() {
            ids.iter().for_each(|id| shared.running.stop(*id, reason));
        }
    });
    let shared = Arc::clone(shared);
    let mut registered = false;
    threads.spawn("slowlane-beat", move || Heartbeat::new(&shared, &mut registered).serve())
}

/// Takes this process off the list of the living. What it still holds is rescued at once.
pub(super) fn say_goodbye(shared: &Shared) {
    let goodbye = shared.manager("goodbye").open().and_then(|mut c| workers::unregister(&mut c, shared.worker_id()));
    if let Err(error) = goodbye {
        log::info!("this process could not sign off, and will be declared dead: {error}");
    }
}

/// The end that was written, and what it became; nothing when the attempt ended otherwise between two looks.
fn put_back(connection: &mut PgConnection, held: &Held, repeatable: bool) -> Result<Option<(Ending, Became)>, DbError> {
    // Where a transaction is in doubt, the next attempt begins with finding out.
    let repeatable = repeatable || checkpoint::is_in_doubt(connection, held.lease.job_id)?;
    let ending = interrupted(Interruption::HandedBack, repeatable, "its worker lost sight of it");
    let became = finish::end(connection, &[(held.lease, ending.clone())])?.remove(&held.lease.job_id);
    Ok(became.map(|became| (ending, became)))
}

fn tell(held: &Held, ending: &Ending, became: Became) {
    let attempted = Attempted {
        job_id: held.lease.job_id,
        kind: &held.kind,
        target: &held.target,
        attempt: held.attempt,
        // Nobody knows when it stopped.
        took: None,
    };
    report::ended(&attempted, ending, became);
}

/// Stores what attempts said, as much of it as can be stored within a moment: beats come first. A line stays with its
/// attempt until it is stored: what fails here, or is too much, comes again, or with the attempt's end.
fn store_lines(connection: &mut PgConnection, said: &[(Attempt, Vec<LogLine>)]) -> Result<(), DbError> {
    let until = Instant::now() + LOOK_EVERY;
    let mut refused = Ok(());
    let mut portions = VecDeque::from(job_log::portions(said));
    while let Some(portion) = portions.pop_front().filter(|_| Instant::now() < until) {
        match store(connection, &portion) {
            Ok(()) => {}
            // One attempt's line that can't be stored holds up no other attempt's.
            Err(DbError::Query(_)) if portion.len() > 1 => {
                portion.into_iter().for_each(|one| portions.push_front(vec![one]));
            }
            Err(error @ DbError::Query(_)) => refused = refused.and(Err(error)),
            Err(error) => return Err(error),
        }
    }
    refused
}

fn store(connection: &mut PgConnection, said: &[(Attempt, Vec<LogLine>)]) -> Result<(), DbError> {
    let lines: Vec<_> = said.iter().map(|(attempt, lines)| (attempt.job.lease, lines.clone())).collect();
    job_log::write(connection, &lines)?;
    said.iter().for_each(|(attempt, lines)| attempt.said.log().stored(lines));
    Ok(())
}

/// Something beside the beats that the database may refuse. That is complained of once, until it works again.
struct Errand {
    what: &'static str,
    refused: bool,
}

impl Errand {
    fn new(what: &'static str) -> Errand {
        Errand { what, refused: false }
    }

    /// The value, or `None` after a refusal. A lost connection alone is an error.
    fn done<T>(&mut self, outcome: Result<T, DbError>) -> Result<Option<T>, DbError> {
        match outcome {
            Ok(value) => {
                if std::mem::take(&mut self.refused) {
                    log::info!("{} works again", self.what);
                }
                Ok(Some(value))
            }
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.refused, true) {
                    log::warn!("{} is refused, and is tried again: {error}", self.what);
                }
                Ok(None)
            }
        }
    }
}

struct Heartbeat<'s> {
    shared: &'s Shared,
    connection: Option<PgConnection>,
    /// Once and no more, not by a thread that begins anew either: an id that was buried must not come back.
    registered: &'s mut bool,
    failing: bool,
    /// It has said that it shuts down.
    said_stopping: bool,
    /// Rows that are ours and that nobody works on, by job and lease, and when they were seen first.
    unworked: HashMap<(Uuid, i64), Instant>,
    /// When the next beat is due.
    due: Instant,
    requests: Errand,
    progress: Errand,
    lines: Errand,
    rows: Errand,
    /// The targets as this process' row has them.
    healths: Healths,
}

impl<'s> Heartbeat<'s> {
    fn new(shared: &'s Shared, registered: &'s mut bool) -> Heartbeat<'s> {
        Heartbeat {
            shared,
            connection: None,
            registered,
            failing: false,
            said_stopping: false,
            unworked: HashMap::new(),
            due: Instant::now(),
            requests: Errand::new("reading requests to cancel or to pause"),
            progress: Errand::new("writing progress"),
            lines: Errand::new("storing what jobs say"),
            rows: Errand::new("looking for rows that are ours and not run"),
            healths: Healths::default(),
        }
    }

    fn serve(&mut self) {
        while !self.shared.stop.is_set() {
            if let Err(error) = self.tick() {
                self.failed(&error);
            }
            self.shared.stop.wait(if self.failing { jittered(LOOK_EVERY) } else { LOOK_EVERY });
        }
    }

    fn tick(&mut self) -> Result<(), DbError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.shared.heartbeat_manager().open()?,
        };
        // Before the beat: its answer may take seconds.
        let now = Instant::now();
        let stopping = self.shared.config.health.is_stopping();
        // That it shuts down is said at once: whoever stops it may lose patience.
        let beating = now >= self.due || stopping != self.said_stopping;
        if !*self.registered {
            let id = self.shared.worker_id();
            workers::register(&mut connection, &self.shared.identity(id))?;
            *self.registered = true;
        } else if beating && !self.beat(&mut connection, stopping)? {
            self.declared_dead(&mut connection)?;
        }
        if beating {
            self.beaten(now);
        }
        self.run_errands(&mut connection, beating)?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Says how the targets are where that has changed. `false` when this process was declared dead.
    fn beat(&mut self, connection: &mut PgConnection, stopping: bool) -> Result<bool, DbError> {
        let mut healths = self.healths.clone();
        let changed = healths.update(self.shared.healths());
        let alive = workers::beat(connection, self.shared.worker_id(), changed.then(|| healths.all()), stopping)?;
        // Only what was written isn't written again.
        self.healths = healths;
        self.said_stopping = stopping;
        Ok(alive)
    }

    /// What the database refuses of these is tried again with the next tick, and takes nothing from the beats. `beating`:
    /// also what is done with each beat alone.
    fn run_errands(&mut self, connection: &mut PgConnection, beating: bool) -> Result<(), DbError> {
        let running = &self.shared.running;
        let requests = self.requests.done(cancel::requested(connection, &running.job_ids()))?;
        for (id, asked) in requests.into_iter().flatten() {
            let reason = match asked {
                Asked::Cancel => StopReason::Cancel,
                Asked::Pause => StopReason::Pause,
            };
            running.stop(id, reason);
        }
        self.progress.done(progress::write(connection, &running.take_progress()))?;
        self.lines.done(store_lines(connection, &running.unstored_lines()))?;
        if beating {
            let outcome = self.put_back_what_is_not_run(connection);
            self.rows.done(outcome)?;
        }
        Ok(())
    }

    /// A claim whose answer was lost, and an end that could not be stored, leave rows that are ours and that nobody
    /// works on: they are put back, as if this process had died.
    fn put_back_what_is_not_run(&mut self, connection: &mut PgConnection) -> Result<(), DbError> {
        let shared = self.shared;
        let held = orphans::held(connection, shared.worker_id())?;
        for held in self.without_work(held, Instant::now()) {
            // A claim whose answer was lost has begun nothing.
            let began = shared.running.take_unwritten(&held.lease);
            let repeatable = !began || shared.config.repeatable(&held.kind);
            match put_back(connection, &held, repeatable) {
                Ok(Some((ending, became))) => {
                    let job = held.lease.job_id.to_string();
                    log::warn!(job = job; "a job was ours and nobody worked on it: it is put back");
                    tell(&held, &ending, became);
                    shared.config.signals.job_changed(held.lease.job_id);
                    shared.slots.wake(&[]);
                }
                Ok(None) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => {
                    if began {
                        shared.running.unwritten(&held.lease);
                    }
                    log::error!(job = held.lease.job_id.to_string(); "a job that is ours can't be put back, and is tried again: {error}");
                }
            }
        }
        Ok(())
    }

    /// Of the rows that are ours, those that nobody has worked on for long, by our own count of time.
    fn without_work(&mut self, held: Vec<Held>, now: Instant) -> Vec<Held> {
        let key = |lease: &Lease| (lease.job_id, lease.number);
        let idle: Vec<Held> = held.into_iter().filter(|held| !self.shared.running.knows(&held.lease)).collect();
        let seen: HashMap<(Uuid, i64), Instant> = idle
            .iter()
            .map(|held| (key(&held.lease), self.unworked.get(&key(&held.lease)).copied().unwrap_or(now)))
            .collect();
        self.unworked = seen;
        let since = |held: &Held| self.unworked.get(&key(&held.lease)).copied().unwrap_or(now);
        idle.into_iter().filter(|held| now.saturating_duration_since(since(held)) >= LOST_AFTER).collect()
    }

    /// The leases are gone with the old id. The new one is on the list before it claims anything.
    fn declared_dead(&mut self, connection: &mut PgConnection) -> Result<(), DbError> {
        log::warn!("this process was declared dead: it stops what it runs, and goes on under a new id");
        self.shared.running.stop_all(StopReason::LeaseLost);
        let id = Uuid::now_v7();
        workers::register(connection, &self.shared.identity(id))?;
        self.shared.set_worker_id(id);
        // What the fetcher looked for under the old id, it didn't get.
        self.shared.slots.wake(&[]);
        Ok(())
    }

    fn beaten(&mut self, at: Instant) {
        self.due = at + BEAT_EVERY;
        let health = &self.shared.config.health;
        let was_ready = health.workers_ready();
        health.beat(at);
        let failing = std::mem::take(&mut self.failing);
        if failing {
            log::info!("the queue can be reached again");
        }
        self.shared.slots.release(failing || !was_ready);
    }

    fn failed(&mut self, error: &DbError) {
        if !std::mem::replace(&mut self.failing, true) {
            log::warn!("the queue can't be reached, and is tried again: {error}");
        }
    }
}
