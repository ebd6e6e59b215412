//! What jobs have left on their targets when they ended: told by the checkpoints that outlive them, until it is seen
//! to.
//!
//! A row is taken by moving the time at which it was looked at, so that of many processes one looks at a time. Knows
//! no target and no kind.

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Json, Text, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::model::{Lease, RawJson};
use crate::queue::record::log::{LogLevel, LogSource};

/// Between two looks at what a job has left, in seconds.
const LOOK_AGAIN_AFTER_S: i64 = 30;
/// What couldn't be seen to for so many days is left to the doctor.
const GIVE_UP_AFTER_DAYS: i32 = 7;
/// Rows removed by one statement.
const SWEPT: i64 = 1_000;

/// What a job that has ended may have left.
#[derive(Clone, Debug)]
pub struct Left {
    /// The job.
    pub job_id: Uuid,
    /// The lease of its last attempt.
    pub lease: i64,
    /// Its kind.
    pub kind: String,
    /// Where it ran.
    pub target: String,
    /// Its last checkpoint, in the kind's own words.
    pub cursor: RawJson,
}

impl Left {
    /// The `application_name` that the job's last attempt had: nobody else has it any more.
    pub fn application_name(&self) -> String {
        Lease::application_name_of(self.job_id, self.lease)
    }
}

#[derive(QueryableByName)]
struct LeftRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    job_id: Uuid,
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Json)]
    cursor: RawJson,
}

/// Takes what one ended job of these kinds and targets may have left, the one that was looked at longest ago. Nobody
/// else takes it for the next 30 s. `None` when there is nothing to look at. `now` is a time by
/// [`CautiousClock`](crate::queue::fleet::clock::CautiousClock). What was looked at in what is the future by now was so before
/// the clock was set back.
///
/// # Errors
/// When the database fails.
pub fn take(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    kinds: &[String],
    targets: &[String],
) -> Result<Option<Left>, DbError> {
    let row = prepared(
        "WITH l AS MATERIALIZED (
             SELECT c.job_id, f.lease, f.kind, f.target FROM job_checkpoints c JOIN finished_jobs f ON f.id = c.job_id
              WHERE c.leaves AND c.cursor IS NOT NULL AND f.kind = ANY($1) AND f.target = ANY($2)
                AND (c.looked_at IS NULL OR c.looked_at < $4 - $3 * interval '1 second'
                     OR c.looked_at > clock_timestamp())
              ORDER BY c.looked_at NULLS FIRST LIMIT 1 FOR UPDATE OF c SKIP LOCKED)
         UPDATE job_checkpoints c SET looked_at = $4 FROM l WHERE c.job_id = l.job_id
         RETURNING l.job_id, l.lease, l.kind, l.target, c.cursor->'cursor' AS cursor",
    )
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Text>, _>(targets)
    .bind::<BigInt, _>(LOOK_AGAIN_AFTER_S)
    .bind::<Timestamptz, _>(now)
    .get_result::<LeftRow>(connection)
    .optional()?;
    let left = |LeftRow { job_id, lease, kind, target, cursor }| Left { job_id, lease, kind, target, cursor };
    Ok(row.map(left))
}

/// Nothing is left of what this job's checkpoint tells, or nobody can do anything about it.
///
/// # Errors
/// When the database fails.
pub fn done(connection: &mut PgConnection, job_id: Uuid) -> Result<(), DbError> {
    prepared("DELETE FROM job_checkpoints c WHERE c.job_id = $1 AND c.leaves AND c.xid IS NULL")
        .bind::<diesel::sql_types::Uuid, _>(job_id)
        .execute(connection)?;
    Ok(())
}

/// Adds a line to the log of a job that has ended, behind those of its last attempt.
///
/// # Errors
/// When the database fails.
pub fn tell(connection: &mut PgConnection, left: &Left, level: LogLevel, message: &str) -> Result<(), DbError> {
    prepared(
        "INSERT INTO job_log (job_id, lease, n, at, level, source, sqlstate, message)
         SELECT $1, $2, coalesce(max(l.n), -1) + 1, clock_timestamp(), $3, $4, NULL, $5
           FROM job_log l WHERE l.job_id = $1 AND l.lease = $2
         ON CONFLICT (job_id, lease, n) DO NOTHING",
    )
    .bind::<diesel::sql_types::Uuid, _>(left.job_id)
    .bind::<BigInt, _>(left.lease)
    .bind::<Text, _>(level.as_str())
    .bind::<Text, _>(LogSource::Work.as_str())
    .bind::<Text, _>(message)
    .execute(connection)?;
    Ok(())
}

/// Forgets what nobody could see to within a week before `now`, and what was left by jobs that are history no more.
///
/// # Errors
/// When the database fails.
pub fn sweep(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), DbError> {
    let sql = "DELETE FROM job_checkpoints WHERE job_id = ANY(ARRAY(
        SELECT c.job_id FROM job_checkpoints c
         WHERE c.leaves AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = c.job_id)
           AND (c.updated_at < $3 - $1 * interval '1 day'
                OR NOT EXISTS (SELECT FROM finished_jobs f WHERE f.id = c.job_id)) LIMIT $2))";
    prepared(sql)
        .bind::<Integer, _>(GIVE_UP_AFTER_DAYS)
        .bind::<BigInt, _>(SWEPT)
        .bind::<Timestamptz, _>(now)
        .execute(connection)?;
    Ok(())
}
