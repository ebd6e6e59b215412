//! The statements about results and their parts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Integer, Timestamptz};
use uuid::Uuid;

use crate::db::schema::{result_parts, results};
use crate::db::{DbError, prepared};
use crate::queue::Lease;
use crate::queue::model::{RawJson, ResultState};
use crate::queue::record::partitions;
use crate::results::Manifest;

/// Writes a part, again if need be: who lost the answer may repeat it. `false`, and nothing is written, when the lease
/// is lost.
///
/// # Errors
/// When the database fails.
pub fn write_part(connection: &mut PgConnection, lease: &Lease, n: i32, data: &[u8]) -> Result<bool, DbError> {
    let insert = |connection: &mut PgConnection| -> Result<usize, DbError> {
        let statement = prepared(
            "INSERT INTO result_parts (job_id, lease, n, data)
             SELECT id, lease, $4, $5 FROM jobs WHERE id = $1 AND lease = $2 AND worker_id = $3 AND state = 'running'
             ON CONFLICT (job_id, lease, n) DO UPDATE SET data = excluded.data",
        )
        .bind::<diesel::sql_types::Uuid, _>(lease.job_id)
        .bind::<BigInt, _>(lease.number)
        .bind::<diesel::sql_types::Uuid, _>(lease.worker_id)
        .bind::<Integer, _>(n)
        .bind::<Binary, _>(data);
        Ok(statement.execute(connection)?)
    };
    Ok(partitions::with_days_of(connection, std::iter::once(lease.job_id), insert)? == 1)
}

/// A result that was made visible.
#[derive(Clone, Debug)]
pub struct StoredResult {
    /// Whether it can be fetched.
    pub state: ResultState,
    /// The lease that its parts are stored under.
    pub lease: i64,
    /// When it goes, or went.
    pub expires_at: DateTime<Utc>,
    /// What it is made of.
    pub manifest: Manifest,
}

/// A job's result, fetchable or not. `None` when it never had one, or doesn't yet.
///
/// # Errors
/// When the database fails, or the manifest can't be read by this version.
pub fn result(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<StoredResult>, DbError> {
    let row: Option<(String, i64, DateTime<Utc>, RawJson)> = results::table
        .find(job_id)
        .select((results::state, results::lease, results::expires_at, results::manifest))
        .first(connection)
        .optional()?;
    row.map(|(state, lease, expires_at, manifest)| {
        let manifest = serde_json::from_str(manifest.text())
            .map_err(|e| diesel::result::Error::DeserializationError(Box::new(e)))?;
        // The table's CHECK lets no other word in.
        let state = ResultState::parse(&state).unwrap_or(ResultState::Deleted);
        Ok(StoredResult { state, lease, expires_at, manifest })
    })
    .transpose()
}

/// A part's stored bytes, read for at most `patience`. `None` when it is gone.
///
/// # Errors
/// When the database fails.
pub fn part(
    connection: &mut PgConnection,
    job_id: Uuid,
    lease: i64,
    n: i32,
    patience: Duration,
) -> Result<Option<Vec<u8>>, DbError> {
    connection.transaction(|connection| {
        connection.batch_execute(&format!("SET LOCAL statement_timeout = {}", patience.as_millis()))?;
        Ok(result_parts::table.find((job_id, lease, n)).select(result_parts::data).first(connection).optional()?)
    })
}

/// Deletes a result on request. Does nothing when it is gone already.
///
/// # Errors
/// When the database fails.
pub fn delete(connection: &mut PgConnection, job_id: Uuid) -> Result<(), DbError> {
    connection.transaction(|connection| {
        diesel::update(results::table.find(job_id).filter(results::state.eq(ResultState::Available.as_str())))
            .set(results::state.eq(ResultState::Deleted.as_str()))
            .execute(connection)?;
        diesel::delete(result_parts::table.filter(result_parts::job_id.eq(job_id))).execute(connection)?;
        Ok(())
    })
}

/// Expires at most `most` results whose time has passed at `now`. Says which.
///
/// # Errors
/// When the database fails.
pub fn expire(connection: &mut PgConnection, now: DateTime<Utc>, most: i64) -> Result<Vec<Uuid>, DbError> {
    #[derive(QueryableByName)]
    struct Expired {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        job_id: Uuid,
    }
    let rows = diesel::sql_query(
        "WITH e AS (
            UPDATE results SET state = 'expired' WHERE state = 'available' AND job_id = ANY(ARRAY(
                SELECT job_id FROM results WHERE state = 'available' AND expires_at <= $2
                 ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING job_id),
         p AS (DELETE FROM result_parts USING e WHERE result_parts.job_id = e.job_id)
         SELECT job_id FROM e",
    )
    .bind::<BigInt, _>(most)
    .bind::<Timestamptz, _>(now)
    .load::<Expired>(connection)?;
    Ok(rows.into_iter().map(|row| row.job_id).collect())
}

/// Deletes at most `most` parts that nothing names and nobody is writing: what failed and lost attempts left. Only
/// looks at the last two days; older ones go with their day.
///
/// # Errors
/// When the database fails.
pub fn sweep_orphans(connection: &mut PgConnection, most: i64) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM result_parts p USING (
            SELECT p.job_id, p.lease, p.n FROM result_parts p
              LEFT JOIN results r ON r.job_id = p.job_id AND r.lease = p.lease
              LEFT JOIN jobs j ON j.id = p.job_id AND j.lease = p.lease AND j.state = 'running'
             WHERE p.job_id >= first_id_of((clock_timestamp() AT TIME ZONE 'UTC')::date - 1)
               AND r.job_id IS NULL AND j.id IS NULL
             LIMIT $1) o
          WHERE p.job_id = o.job_id AND p.lease = o.lease AND p.n = o.n
            AND NOT EXISTS (SELECT FROM results r WHERE r.job_id = p.job_id AND r.lease = p.lease)",
    )
    .bind::<BigInt, _>(most)
    .execute(connection)?)
}

/// Bytes on disk of all stored parts.
///
/// # Errors
/// When the database fails.
pub fn stored_bytes(connection: &mut PgConnection) -> Result<i64, DbError> {
    #[derive(QueryableByName)]
    struct Size {
        #[diesel(sql_type = BigInt)]
        bytes: i64,
    }
    let row = diesel::sql_query(
        "SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint AS bytes
           FROM pg_inherits WHERE inhparent = 'result_parts'::regclass",
    );
    Ok(row.get_result::<Size>(connection)?.bytes)
}
