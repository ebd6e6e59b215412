//! How far running jobs are, written for all of a process by one statement. Lost in a crash, by design.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};

use crate::db::DbError;
use crate::queue::job::{Lease, ProgressBasis};

/// What a job says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is doing.
    pub phase: String,
    /// How much is done, in `unit`.
    pub done: i64,
    /// How much there is, where that is known.
    pub total: Option<i64>,
    /// What is counted.
    pub unit: String,
    /// Whether `total` is known, estimated or neither.
    pub basis: ProgressBasis,
}

/// Writes the reports of jobs whose lease still holds.
///
/// # Errors
/// When the database fails.
pub fn write(connection: &mut PgConnection, reports: &[(Lease, Report)]) -> Result<(), DbError> {
    if reports.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "INSERT INTO job_progress AS p (job_id, lease, phase, done, total, unit, basis, sampled_at)
         SELECT j.id, j.lease, r.phase, r.done, r.total, r.unit, r.basis, clock_timestamp()
           FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS r(id, lease, worker_id, phase, done, total, unit, basis)
           JOIN jobs j ON j.id = r.id AND j.lease = r.lease AND j.worker_id = r.worker_id AND j.state = 'running'
         ON CONFLICT (job_id) DO UPDATE
            SET lease = excluded.lease, phase = excluded.phase, done = excluded.done, total = excluded.total,
                unit = excluded.unit, basis = excluded.basis, sampled_at = excluded.sampled_at
          WHERE p.lease <= excluded.lease",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(reports.iter().map(|(l, _)| l.job_id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(reports.iter().map(|(l, _)| l.number).collect::<Vec<_>>())
    .bind::<Array<diesel::sql_types::Uuid>, _>(reports.iter().map(|(l, _)| l.worker_id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(reports.iter().map(|(_, r)| r.phase.as_str()).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(reports.iter().map(|(_, r)| r.done).collect::<Vec<_>>())
    .bind::<Array<Nullable<BigInt>>, _>(reports.iter().map(|(_, r)| r.total).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(reports.iter().map(|(_, r)| r.unit.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(reports.iter().map(|(_, r)| r.basis.as_str()).collect::<Vec<_>>())
    .execute(connection)?;
    Ok(())
}
