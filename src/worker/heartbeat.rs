//! Beats by the database's clock on a connection of its own, brings requests to cancel or to pause back, and writes
//! progress.
//!
//! A process that was declared dead learns it here: it stops what it runs, and goes on under a new id. What its rows
//! say that it runs is compared with what it does run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use uuid::Uuid;

use crate::db::DbError;
use crate::kinds::StopReason;
use crate::queue::cancel::Asked;
use crate::queue::liveness::{self, BEAT_EVERY, Held};
use crate::queue::log::{self as job_log, LogLine};
use crate::queue::signals::Message;
use crate::queue::{cancel, checkpoint, finish, progress};
use crate::worker::Shared;
use crate::worker::health::Healths;
use crate::worker::running::Attempt;
use crate::worker::threads::{Threads, jittered};

/// Between two looks for requests to cancel or to pause: how late one may be without NOTIFY.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
    let goodbye = shared.manager("goodbye").open().and_then(|mut c| liveness::unregister(&mut c, shared.worker_id()));
    if let Err(error) = goodbye {
        log::info!("this process could not sign off, and will be declared dead: {error}");
    }
}

fn put_back(connection: &mut PgConnection, held: &Held, repeatable: bool) -> Result<bool, DbError> {
    const WHY: &str = "its worker lost sight of it";
    let ending = match checkpoint::is_in_doubt(connection, held.lease.job_id)? {
        // The next attempt begins with finding out: until then it is none too many.
        true => liveness::interrupted(0, true, WHY)?,
        false => liveness::interrupted(held.interruptions, repeatable, WHY)?,
    };
    Ok(!finish::end(connection, &[(held.lease, ending)])?.is_empty())
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
        let beating = now >= self.due;
        if !*self.registered {
            let id = self.shared.worker_id();
            liveness::register(&mut connection, &self.shared.identity(id))?;
            *self.registered = true;
        } else if beating && !self.beat(&mut connection)? {
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
    fn beat(&mut self, connection: &mut PgConnection) -> Result<bool, DbError> {
        let mut healths = self.healths.clone();
        let changed = healths.update(self.shared.healths());
        let alive = liveness::beat(connection, self.shared.worker_id(), changed.then(|| healths.all()))?;
        // Only what was written isn't written again.
        self.healths = healths;
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
    fn put_back_what_is_not_run(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        let shared = self.shared;
        for held in liveness::held(connection, shared.worker_id())? {
            if shared.running.knows(&held.lease) {
                continue;
            }
            // A claim whose answer was lost has begun nothing.
            let began = shared.running.take_unwritten(&held.lease);
            let repeatable = !began || shared.config.repeatable(&held.kind);
            match put_back(connection, &held, repeatable) {
                Ok(true) => {
                    let job = held.lease.job_id.to_string();
                    log::warn!(job = job; "a job was ours and nobody worked on it: it is put back");
                    shared.config.signals.job_changed(held.lease.job_id);
                    shared.slots.wake(&[]);
                }
                // It ended between the two looks.
                Ok(false) => {}
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

    /// The leases are gone with the old id. The new one is on the list before it claims anything.
    fn declared_dead(&mut self, connection: &mut PgConnection) -> Result<(), DbError> {
        log::warn!("this process was declared dead: it stops what it runs, and goes on under a new id");
        self.shared.running.stop_all(StopReason::LeaseLost);
        let id = Uuid::now_v7();
        liveness::register(connection, &self.shared.identity(id))?;
        self.shared.set_worker_id(id);
        Ok(())
    }

    fn beaten(&mut self, at: Instant) {
        self.due = at + BEAT_EVERY;
        self.shared.config.health.beat(at);
        if std::mem::take(&mut self.failing) {
            log::info!("the queue can be reached again");
        }
    }

    fn failed(&mut self, error: &DbError) {
        if !std::mem::replace(&mut self.failing, true) {
            log::warn!("the queue can't be reached, and is tried again: {error}");
        }
    }
}
