//! What a caller asks of a job: that it stop.
//!
//! A job that waits or is paused ends at once, unless a transaction of it is in doubt. One that runs is only marked: the process
//! that owns it stops the statement on the server, and the state says `cancelled` when it has stopped.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::lifecycle::checkpoint;
use crate::queue::model::{Job, JobState, carried, sql_list};
use crate::queue::record::partitions;
use crate::queue::record::read;

/// What a request to cancel came to.
#[derive(Clone, Debug)]
pub enum CancelOutcome {
    /// There is no such job.
    NotFound,
    /// It waited, and has ended now.
    Cancelled(Job),
    /// It runs, and will be stopped.
    Requested(Job),
    /// It was cancelled before.
    AlreadyCancelled(Job),
    /// It had ended otherwise.
    AlreadyFinished(Job),
}

/// Asks for the end of a job, in a transaction of its own. A job that waited past the days that are kept ready has
/// its day made first.
///
/// # Errors
/// When the database fails.
pub fn request(connection: &mut PgConnection, id: Uuid) -> Result<CancelOutcome, DbError> {
    partitions::with_days_of(connection, std::iter::once(id), |connection| try_request(connection, id))
}

fn try_request(connection: &mut PgConnection, id: Uuid) -> Result<CancelOutcome, DbError> {
    connection.transaction(|connection| {
        use crate::db::schema::jobs::dsl;
        // Locked first: a claim or a finish at the same moment is before us or after us, never in between.
        let state: Option<String> =
            dsl::jobs.find(id).select(dsl::state).for_update().first::<String>(connection).optional()?;
        match state.as_deref() {
            None => finished(connection, id),
            Some("running") => {
                diesel::update(dsl::jobs.find(id).filter(dsl::cancel_requested_at.is_null()))
                    .set((dsl::cancel_requested_at.eq(diesel::dsl::now), dsl::version.eq(dsl::version + 1)))
                    .execute(connection)?;
                Ok(read::job(connection, id)?.map_or(CancelOutcome::NotFound, CancelOutcome::Requested))
            }
            Some(_) if checkpoint::is_in_doubt(connection, id)? => {
                // Whether it took effect comes first: an attempt finds out, and goes no further.
                diesel::update(dsl::jobs.find(id).filter(dsl::cancel_requested_at.is_null()))
                    .set((
                        dsl::cancel_requested_at.eq(diesel::dsl::now),
                        dsl::run_at.eq(diesel::dsl::sql::<Timestamptz>("least(run_at, now())")),
                        dsl::version.eq(dsl::version + 1),
                    ))
                    .execute(connection)?;
                Ok(read::job(connection, id)?.map_or(CancelOutcome::NotFound, CancelOutcome::Requested))
            }
            Some(_) => {
                end_waiting(connection, id)?;
                Ok(read::job(connection, id)?.map_or(CancelOutcome::NotFound, CancelOutcome::Cancelled))
            }
        }
    })
}

fn finished(connection: &mut PgConnection, id: Uuid) -> Result<CancelOutcome, DbError> {
    Ok(match read::job(connection, id)? {
        None => CancelOutcome::NotFound,
        Some(job) if job.status.state == JobState::Cancelled => CancelOutcome::AlreadyCancelled(job),
        Some(job) => CancelOutcome::AlreadyFinished(job),
    })
}

fn end_waiting(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    let columns = sql_list(carried(), "");
    let asked = |name| if name == "cancel_requested_at" { "coalesce(cancel_requested_at, now())" } else { name };
    let values = sql_list(carried().map(asked), "");
    let rows = checkpoint::rows_affected("d.id", "NULL");
    let sql = format!(
        "WITH d AS (DELETE FROM jobs WHERE id = $1 RETURNING *)
         INSERT INTO finished_jobs ({columns}, state, interruptions, version, finished_at, rows_affected, error)
         SELECT {values}, 'cancelled', interruptions, version + 1, clock_timestamp(), {rows}, error FROM d"
    );
    diesel::sql_query(sql).bind::<diesel::sql_types::Uuid, _>(id).execute(connection)?;
    Ok(())
}

/// What was asked of a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// That it end. Counts before a pause.
    Cancel,
    /// That it be paused.
    Pause,
}

#[derive(QueryableByName)]
struct AskedRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = Bool)]
    cancel: bool,
}

/// Of these running jobs, those of which something was asked. This is how a request arrives when no hint does.
///
/// # Errors
/// When the database fails.
pub fn requested(connection: &mut PgConnection, running: &[Uuid]) -> Result<Vec<(Uuid, Asked)>, DbError> {
    if running.is_empty() {
        return Ok(Vec::new());
    }
    let rows = prepared(
        "SELECT id, cancel_requested_at IS NOT NULL AS cancel FROM jobs
          WHERE id = ANY($1) AND (cancel_requested_at IS NOT NULL OR pause_requested_at IS NOT NULL)",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(running)
    .load::<AskedRow>(connection)?;
    Ok(rows.into_iter().map(|row| (row.id, if row.cancel { Asked::Cancel } else { Asked::Pause })).collect())
}
