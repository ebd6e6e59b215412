//! What a process holds, and what the dead left behind.
//!
//! Ending its sessions on a target is not done here; the janitor does it before it calls [`rescue`].

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::fleet::workers::{Sighted, columns};
use crate::queue::lifecycle::end::Interruption;
use crate::queue::lifecycle::end::{Became, Ending, Finished};
use crate::queue::lifecycle::finish::{self};
use crate::queue::lifecycle::interruptions::interrupted;
use crate::queue::model::{JobState, Lease};

/// A running attempt as its row says.
#[derive(Clone, Debug)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// The database that it was to run on.
    pub target: String,
    /// Attempts charged, this one included.
    pub attempt: i32,
}

/// What this process holds by the rows: to be compared with what it really runs. A claim whose answer is on its way is
/// among them.
///
/// # Errors
/// When the database fails.
pub fn held(connection: &mut PgConnection, worker_id: Uuid) -> Result<Vec<Held>, DbError> {
    use crate::db::schema::jobs::dsl;
    let rows: Vec<(Uuid, i64, String, String, i32)> = dsl::jobs
        .filter(dsl::worker_id.eq(worker_id).and(dsl::state.eq(JobState::Running.as_str())))
        .select((dsl::id, dsl::lease, dsl::kind, dsl::target, dsl::attempt))
        .load(connection)?;
    let held = |(job_id, number, kind, target, attempt)| Held {
        lease: Lease { job_id, number, worker_id },
        kind,
        target,
        attempt,
    };
    Ok(rows.into_iter().map(held).collect())
}

/// An attempt whose owner is dead.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The dead owner's lease.
    pub lease: Lease,
    /// The kind of work.
    pub kind: String,
    /// The database that it ran on.
    pub target: String,
    /// Its session there, if it got as far as noting one.
    pub backend_pid: Option<i32>,
    /// When that session began.
    pub backend_start: Option<DateTime<Utc>>,
    /// Its cancellation was asked for.
    pub cancel_requested: bool,
    /// Attempts charged, this one included.
    pub attempt: i32,
    /// How long ago it was claimed, by the database's clock, in milliseconds.
    pub age_ms: i64,
    /// The beat with which its owner was found dead; `None` when the owner isn't on the list any more.
    pub beat: Option<i64>,
    /// Its owner was shutting down, or had done so.
    pub stopping: bool,
}

#[derive(QueryableByName)]
struct OrphanRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    worker_id: Uuid,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Nullable<Integer>)]
    backend_pid: Option<i32>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    backend_start: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    cancel_requested: bool,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = BigInt)]
    age_ms: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    beat: Option<i64>,
    #[diesel(sql_type = Bool)]
    stopping: bool,
}

/// At most `most` running jobs of these kinds and targets whose owner is one of `dead`, and hasn't beaten since that was
/// found, or isn't on the list.
///
/// # Errors
/// When the database fails.
pub fn orphans(
    connection: &mut PgConnection,
    kinds: &[String],
    targets: &[String],
    dead: &[Sighted],
    most: i64,
) -> Result<Vec<Orphan>, DbError> {
    let (ids, beats) = columns(dead);
    let rows = diesel::sql_query(
        "SELECT j.id, j.lease, j.worker_id, j.kind, j.target, j.backend_pid, j.backend_start, j.attempt,
                j.cancel_requested_at IS NOT NULL AS cancel_requested, w.beat,
                greatest(0, extract(epoch FROM clock_timestamp() - j.started_at) * 1000)::bigint AS age_ms,
                w.stopping_at IS NOT NULL OR s.id IS NOT NULL AS stopping
           FROM jobs j LEFT JOIN workers w ON w.id = j.worker_id LEFT JOIN stopped_workers s ON s.id = j.worker_id
          WHERE j.state = 'running' AND j.kind = ANY($1) AND j.target = ANY($2)
            AND (w.id IS NULL OR (w.id, w.beat) IN (SELECT d.id, d.beat FROM unnest($3, $4) AS d(id, beat)))
          ORDER BY j.id LIMIT $5",
    )
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Text>, _>(targets)
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .bind::<Array<BigInt>, _>(beats)
    .bind::<BigInt, _>(most)
    .load::<OrphanRow>(connection)?;
    Ok(rows
        .into_iter()
        .map(|row| Orphan {
            lease: Lease { job_id: row.id, number: row.lease, worker_id: row.worker_id },
            kind: row.kind,
            target: row.target,
            backend_pid: row.backend_pid,
            backend_start: row.backend_start,
            cancel_requested: row.cancel_requested,
            attempt: row.attempt,
            age_ms: row.age_ms,
            beat: row.beat,
            stopping: row.stopping,
        })
        .collect())
}

/// Takes an orphan from its dead owner, to end as `ending` says. Call it only when the owner is buried, its sessions on
/// the target are gone, and no transaction of it is in doubt. What became of it; `None` when the owner isn't buried, or
/// somebody was faster.
///
/// # Errors
/// When the database fails.
pub fn rescue(connection: &mut PgConnection, orphan: &Orphan, ending: Ending) -> Result<Option<Became>, DbError> {
    use crate::db::schema::workers::dsl;
    let buried =
        dsl::workers.find(orphan.lease.worker_id).select(dsl::id).first::<Uuid>(connection).optional()?.is_none();
    if !buried {
        return Ok(None);
    }
    let endings = [(orphan.lease, ending)];
    Ok(finish::end_for_the_dead(connection, &endings)?.remove(&orphan.lease.job_id))
}

/// The end of an orphan of which nothing is in doubt: handed back if its kind may run again, ended otherwise. A worker that
/// shut down, or was doing so when it died, is no loss: whoever stopped it lost patience, or a row was locked.
pub fn ending_of(orphan: &Orphan, repeatable: bool) -> Ending {
    if orphan.cancel_requested && repeatable {
        return Ending::from(Finished { interrupted: true, ..Finished::plain(JobState::Cancelled) });
    }
    match orphan.stopping {
        true => interrupted(Interruption::HandedBack, repeatable, "its worker was ended while it shut down"),
        false => interrupted(Interruption::WorkerLost, repeatable, "the worker died"),
    }
}
