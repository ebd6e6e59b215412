//! What a job comes to whose transaction may have taken effect: the target is asked, and nobody else decides.
//!
//! Asked by whoever is about to end the job, or to run it again: the executor, the watch and the janitor.

use diesel::pg::PgConnection;

use crate::db::DbError;
use crate::db::fate::Fate;
use crate::queue::Lease;
use crate::queue::lifecycle::checkpoint::{self, Effect, Outcome, Recorded};
use crate::target::Target;
use crate::worker::Shared;

/// What is known of a job's transaction.
pub(super) enum Settled {
    /// None was recorded, as far as this lease can know.
    Nothing,
    /// It never took effect.
    RolledBack,
    /// It took effect, and was a part of the work: the job goes on at its cursor, which is saved.
    Advanced,
    /// It took effect: the job has succeeded with this.
    Committed(String, Box<Outcome>),
    /// Nobody will ever know, for this reason.
    Unknown(String, String),
}

/// Who couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("this process has no target {0}")]
    NoTarget(String),
    #[error("{0}")]
    Target(DbError),
    #[error("{0}")]
    Queue(DbError),
}

/// Finds out what became of the job's recorded transaction. Forgets one that never took effect, and moves the cursor to where
/// a batch that did has the work go on. `lease` is that of
/// whoever asks.
pub(super) fn settle(connection: &mut PgConnection, target: &Target, lease: &Lease) -> Result<Settled, Obstacle> {
    let recorded = checkpoint::recorded(connection, lease.job_id).map_err(Obstacle::Queue)?;
    // One of a later lease is none of ours: its owner is at work.
    let Some(recorded) = recorded.filter(|recorded| recorded.lease <= lease.number) else {
        return Ok(Settled::Nothing);
    };
    let xid = recorded.mark.xid.clone();
    match fate(target, lease, &recorded).map_err(Obstacle::Target)? {
        Fate::Committed => match recorded.effect {
            Effect::End(outcome) => Ok(Settled::Committed(xid, Box::new(found(outcome, recorded.lease, lease)))),
            Effect::Batch(_) => {
                checkpoint::advance(connection, lease.job_id, recorded.lease, &xid).map_err(Obstacle::Queue)?;
                Ok(Settled::Advanced)
            }
        },
        Fate::RolledBack => {
            checkpoint::forget(connection, lease.job_id, &recorded).map_err(Obstacle::Queue)?;
            Ok(Settled::RolledBack)
        }
        Fate::Unknown(why) => Ok(Settled::Unknown(xid, why)),
        Fate::InProgress => Err(Obstacle::Target(DbError::Busy("the session of a transaction is still ending"))),
    }
}

/// A session that is still there is ended: what it hasn't committed by then, it never will.
fn fate(target: &Target, lease: &Lease, recorded: &Recorded) -> Result<Fate, DbError> {
    match target.fate(&recorded.mark)? {
        Fate::InProgress => {
            let of = Lease { number: recorded.lease, ..*lease };
            target.end_sessions(&of.application_name(), &[])?;
            target.fate(&recorded.mark)
        }
        fate => Ok(fate),
    }
}

/// The parts of a result carry the lease under which they were written: under another one nobody would find them.
fn found(outcome: Outcome, of: i64, lease: &Lease) -> Outcome {
    Outcome { result: outcome.result.filter(|_| of == lease.number), ..outcome }
}

/// As [`settle`], for an attempt of this process.
pub(super) fn settle_attempt(shared: &Shared, target: &str, lease: &Lease) -> Result<Settled, Obstacle> {
    let target = shared.config.targets.get(target).ok_or_else(|| Obstacle::NoTarget(target.to_owned()))?;
    let mut connection = shared.config.control.get().map_err(Obstacle::Queue)?;
    settle(&mut connection, target, lease)
}
