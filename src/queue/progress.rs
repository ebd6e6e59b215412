//! How far running jobs are, written for all of a process by one statement. Lost in a crash, by design.

use chrono::Utc;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};

use crate::db::{DbError, prepared};
use crate::queue::job::{JobProgress, Lease, ProgressBasis, RawJson};

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

/// What an attempt said of itself last, and whether that was written.
#[derive(Clone, Debug, Default)]
pub struct LastReport {
    report: Option<Report>,
    told: bool,
}

impl LastReport {
    /// A newer report.
    pub fn set(&mut self, report: Report) {
        *self = LastReport { report: Some(report), told: false };
    }

    /// The report, if it wasn't taken before.
    pub fn take_untold(&mut self) -> Option<Report> {
        if std::mem::replace(&mut self.told, true) { None } else { self.report.clone() }
    }

    /// The report as a finished job keeps it.
    pub fn for_history(&self) -> Option<RawJson> {
        let Report { phase, done, total, unit, basis } = self.report.clone()?;
        RawJson::of(&JobProgress { phase, done, total, unit, basis, sampled_at: Utc::now() }).ok()
    }
}

/// Deletes what was written of attempts that have ended. Readers don't look at it any more.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM job_progress p WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = p.job_id AND j.state = 'running')",
    )
    .execute(connection)?)
}

/// Writes the reports of jobs whose lease still holds.
///
/// # Errors
/// When the database fails.
pub fn write(connection: &mut PgConnection, reports: &[(Lease, Report)]) -> Result<(), DbError> {
    if reports.is_empty() {
        return Ok(());
    }
    prepared(
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
