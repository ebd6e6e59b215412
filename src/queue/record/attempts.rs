//! The attempts of a job. The one that runs and the one that ended the job are rows of the job itself.

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Json, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::model::RawJson;

/// One attempt.
#[derive(Clone, Debug, QueryableByName)]
pub struct Attempt {
    /// Its lease: grows from attempt to attempt.
    #[diesel(sql_type = BigInt)]
    pub lease: i64,
    /// The number of the charged attempt that it was, from 1. One that wasn't charged shares its number with the next.
    #[diesel(sql_type = Integer)]
    pub attempt: i32,
    /// The process that ran it.
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    pub worker_id: Uuid,
    /// When it was claimed.
    #[diesel(sql_type = Timestamptz)]
    pub started_at: DateTime<Utc>,
    /// When it ended.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub finished_at: Option<DateTime<Utc>>,
    /// How it ended.
    #[diesel(sql_type = Nullable<Text>)]
    pub outcome: Option<String>,
    /// The server process that it worked with last.
    #[diesel(sql_type = Nullable<Integer>)]
    pub backend_pid: Option<i32>,
    /// Why it failed or was interrupted.
    #[diesel(sql_type = Nullable<Json>)]
    pub error: Option<RawJson>,
    /// The version of the saved statement that it ran.
    #[diesel(sql_type = Nullable<Text>)]
    pub statement_version: Option<String>,
}

/// At most `limit` attempts of a job behind the one of lease `after`, oldest first.
///
/// # Errors
/// When the database fails.
pub fn page(connection: &mut PgConnection, job_id: Uuid, after: i64, limit: i64) -> Result<Vec<Attempt>, DbError> {
    let sql = "SELECT lease, attempt, worker_id, started_at, finished_at, outcome, backend_pid, error,
                statement_version
           FROM all_attempts WHERE job_id = $1 AND lease > $2 ORDER BY lease LIMIT $3";
    Ok(diesel::sql_query(sql)
        .bind::<diesel::sql_types::Uuid, _>(job_id)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(limit)
        .load(connection)?)
}
