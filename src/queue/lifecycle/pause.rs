//! What a caller asks of a job that can go on from where it was: that it be paused, and that it go on.
//!
//! A job that waits is paused at once, unless a transaction of it is in doubt. One that runs is only marked: its attempt
//! stops, and what ends the attempt makes it `paused` (`queue/lifecycle/finish.rs`). Which kinds can do that is known to the caller.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Json, Text};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::fleet::signals::ReadyHint;
use crate::queue::lifecycle::checkpoint;
use crate::queue::model::{Job, JobState, RawJson};
use crate::queue::record::read;

/// What a request to pause came to.
#[derive(Clone, Debug)]
pub enum PauseOutcome {
    /// There is no such job.
    NotFound,
    /// It waited, and is paused now.
    Paused(Job),
    /// It runs, and will be paused; or what became of its last transaction is found out first.
    Requested(Job),
    /// It is paused, or that was asked for before.
    Already(Job),
    /// It has ended.
    AlreadyFinished(Job),
    /// Its kind can't go on from where it was.
    NotResumable(Job),
}

/// What a request to go on came to.
#[derive(Clone, Debug)]
pub enum ResumeOutcome {
    /// There is no such job.
    NotFound,
    /// It was paused, and waits for its turn or its time now.
    Resumed(Job),
    /// It was to be paused, and isn't any more.
    Withdrawn(Job),
    /// It runs or waits, and nobody asked for a pause.
    Already(Job),
    /// It has ended.
    AlreadyFinished(Job),
    /// Its kind can't be paused.
    NotResumable(Job),
}

impl ResumeOutcome {
    /// Where fetchers find the job, if it can be claimed.
    pub fn ready(&self) -> Option<ReadyHint> {
        match self {
            ResumeOutcome::Resumed(job) if job.status.state == JobState::Queued => Some(ReadyHint {
                queue: job.spec.queue.clone(),
                priority: job.spec.priority,
                run_at: job.status.run_at,
                id: job.id,
            }),
            _ => None,
        }
    }
}

#[derive(QueryableByName)]
struct Now {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Json)]
    args: RawJson,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    asked: bool,
}

/// Locked: a claim or an end at the same moment is before us or after us, never in between.
fn locked(connection: &mut PgConnection, id: Uuid) -> Result<Option<Now>, DbError> {
    let row = prepared(
        "SELECT kind, args, state, pause_requested_at IS NOT NULL AS asked FROM jobs WHERE id = $1 FOR UPDATE",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .get_result::<Now>(connection)
    .optional()?;
    Ok(row)
}

fn change(connection: &mut PgConnection, id: Uuid, columns: &str) -> Result<(), DbError> {
    prepared(format!("UPDATE jobs SET {columns}, version = version + 1 WHERE id = $1"))
        .bind::<diesel::sql_types::Uuid, _>(id)
        .execute(connection)?;
    Ok(())
}

/// Asks that a job be paused, in a transaction of its own. `resumable` says of a kind and arguments whether the work can go on
/// from where it was.
///
/// # Errors
/// When the database fails.
pub fn request(
    connection: &mut PgConnection,
    id: Uuid,
    resumable: impl Fn(&str, &RawValue) -> bool,
) -> Result<PauseOutcome, DbError> {
    connection.transaction(|connection| {
        let Some(now) = locked(connection, id)? else {
            return Ok(read::job(connection, id)?.map_or(PauseOutcome::NotFound, PauseOutcome::AlreadyFinished));
        };
        let outcome = match now.state.as_str() {
            _ if !resumable(&now.kind, &now.args.0) => PauseOutcome::NotResumable,
            "paused" => PauseOutcome::Already,
            _ if now.asked => PauseOutcome::Already,
            "running" => {
                change(connection, id, "pause_requested_at = now()")?;
                PauseOutcome::Requested
            }
            _ if checkpoint::is_in_doubt(connection, id)? => {
                // An attempt finds out, and goes no further.
                change(connection, id, "pause_requested_at = now(), run_at = least(run_at, now())")?;
                PauseOutcome::Requested
            }
            _ => {
                change(connection, id, "state = 'paused', queued_xid = NULL")?;
                PauseOutcome::Paused
            }
        };
        Ok(read::job(connection, id)?.map_or(PauseOutcome::NotFound, outcome))
    })
}

/// Has a paused job wait for its turn again, or for its time where that is still to come, in a transaction of its own. A
/// pause that was asked for and hasn't come about is withdrawn: an attempt that is stopping for it already is followed by
/// the next one at once.
///
/// # Errors
/// When the database fails.
pub fn resume(
    connection: &mut PgConnection,
    id: Uuid,
    resumable: impl Fn(&str, &RawValue) -> bool,
) -> Result<ResumeOutcome, DbError> {
    connection.transaction(|connection| {
        let Some(now) = locked(connection, id)? else {
            return Ok(read::job(connection, id)?.map_or(ResumeOutcome::NotFound, ResumeOutcome::AlreadyFinished));
        };
        let outcome = match now.state.as_str() {
            // Whether it can go on is for whoever claims it to say: a saved statement may be known elsewhere.
            "paused" => {
                // One clock for both: it is either queued or scheduled.
                let columns = "state = CASE WHEN run_at > now() THEN 'scheduled' ELSE 'queued' END,
                    queued_xid = CASE WHEN run_at > now() THEN NULL ELSE pg_current_xact_id() END";
                change(connection, id, columns)?;
                ResumeOutcome::Resumed
            }
            _ if !resumable(&now.kind, &now.args.0) => ResumeOutcome::NotResumable,
            _ if now.asked => {
                change(connection, id, "pause_requested_at = NULL")?;
                ResumeOutcome::Withdrawn
            }
            _ => ResumeOutcome::Already,
        };
        Ok(read::job(connection, id)?.map_or(ResumeOutcome::NotFound, outcome))
    })
}
