//! How far running jobs are, as rows: written for all of a process by one statement, and swept. Lost in a crash, by design.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Json, Nullable, Text};

use crate::db::{DbError, prepared};
use crate::queue::model::{JobProgress, Lease, RawJson};

/// Deletes what was written of attempts that have ended, but of those that were paused. Readers don't look at it any more.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM job_progress p WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = p.job_id AND j.state IN ('running', 'paused'))",
    )
    .execute(connection)?)
}

/// Writes how far jobs are whose lease still holds.
///
/// # Errors
/// When the database fails.
pub fn write(connection: &mut PgConnection, jobs: &[(Lease, JobProgress)]) -> Result<(), DbError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let blocked_by =
        |progress: &JobProgress| progress.blocked_by.as_ref().and_then(|blockers| RawJson::of(blockers).ok());
    let blocked_by: Vec<Option<RawJson>> = jobs.iter().map(|(_, progress)| blocked_by(progress)).collect();
    prepared(
        "INSERT INTO job_progress AS p (job_id, lease, phase, done, total, unit, basis, eta_ms, wait_event, blocked_by,
                                        temp_bytes, sampled_at)
         SELECT j.id, j.lease, r.phase, r.done, r.total, r.unit, r.basis, r.eta_ms, r.wait_event, r.blocked_by, r.temp_bytes,
                clock_timestamp()
           FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                AS r(id, lease, worker_id, phase, done, total, unit, basis, eta_ms, wait_event, blocked_by, temp_bytes)
           JOIN jobs j ON j.id = r.id AND j.lease = r.lease AND j.worker_id = r.worker_id AND j.state = 'running'
         ON CONFLICT (job_id) DO UPDATE
            SET lease = excluded.lease, phase = excluded.phase, done = excluded.done, total = excluded.total,
                unit = excluded.unit, basis = excluded.basis, eta_ms = excluded.eta_ms, wait_event = excluded.wait_event,
                blocked_by = excluded.blocked_by, temp_bytes = excluded.temp_bytes, sampled_at = excluded.sampled_at
          WHERE p.lease <= excluded.lease",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(jobs.iter().map(|(l, _)| l.job_id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(jobs.iter().map(|(l, _)| l.number).collect::<Vec<_>>())
    .bind::<Array<diesel::sql_types::Uuid>, _>(jobs.iter().map(|(l, _)| l.worker_id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(jobs.iter().map(|(_, p)| p.phase.as_str()).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(jobs.iter().map(|(_, p)| p.done).collect::<Vec<_>>())
    .bind::<Array<Nullable<BigInt>>, _>(jobs.iter().map(|(_, p)| p.total).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(jobs.iter().map(|(_, p)| p.unit.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(jobs.iter().map(|(_, p)| p.basis.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<BigInt>>, _>(jobs.iter().map(|(_, p)| p.eta_ms).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(jobs.iter().map(|(_, p)| p.wait_event.as_deref()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Json>>, _>(blocked_by)
    .bind::<Array<Nullable<BigInt>>, _>(jobs.iter().map(|(_, p)| p.temp_bytes).collect::<Vec<_>>())
    .execute(connection)?;
    Ok(())
}
