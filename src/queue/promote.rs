//! Scheduled jobs become claimable when they are due. Any process may do it, and several may at once.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, SmallInt, Text, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::signals::ReadyHint;

/// Rows moved by one statement.
pub const BATCH: i64 = 1_000;

#[derive(QueryableByName)]
struct Moved {
    #[diesel(sql_type = Text)]
    queue: String,
    #[diesel(sql_type = SmallInt)]
    priority: i16,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

/// Moves at most [`BATCH`] jobs that are due, oldest first. Says where fetchers find them.
///
/// # Errors
/// When the database fails.
pub fn due(connection: &mut PgConnection) -> Result<Vec<ReadyHint>, DbError> {
    let rows = prepared(
        "UPDATE jobs SET state = 'queued', queued_xid = pg_current_xact_id(), version = version + 1
          WHERE state = 'scheduled' AND id = ANY(ARRAY(
                SELECT id FROM jobs WHERE state = 'scheduled' AND run_at <= clock_timestamp()
                 ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED))
         RETURNING queue, priority, run_at, id",
    )
    .bind::<BigInt, _>(BATCH)
    .load::<Moved>(connection)?;
    Ok(rows
        .into_iter()
        .map(|row| ReadyHint { queue: row.queue, priority: row.priority, run_at: row.run_at, id: row.id })
        .collect())
}

#[derive(QueryableByName)]
struct Next {
    #[diesel(sql_type = Nullable<Double>)]
    seconds: Option<f64>,
}

/// How long until the next job is due; zero when one is, `None` when none is scheduled.
///
/// # Errors
/// When the database fails.
pub fn until_next(connection: &mut PgConnection) -> Result<Option<Duration>, DbError> {
    let next = prepared(
        "SELECT extract(epoch FROM min(run_at) - clock_timestamp())::float8 AS seconds FROM jobs WHERE state = 'scheduled'",
    )
    .get_result::<Next>(connection)?;
    Ok(next.seconds.map(|s| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX)))
}
