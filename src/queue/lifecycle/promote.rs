//! Scheduled jobs become claimable when they are due. Any process may do it, and several may at once.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, SmallInt, Text, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::fleet::signals::ReadyHint;

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
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// How long until the next job is due (zero when one is, `None` when none is scheduled), and the database's clock.
///
/// # Errors
/// When the database fails.
pub fn until_next(connection: &mut PgConnection) -> Result<(Option<Duration>, DateTime<Utc>), DbError> {
    let next = prepared(
        "SELECT extract(epoch FROM min(run_at) - clock_timestamp())::float8 AS seconds, clock_timestamp() AS at
           FROM jobs WHERE state = 'scheduled'",
    )
    .get_result::<Next>(connection)?;
    Ok((next.seconds.map(|s| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX)), next.at))
}

/// After the database's clock was set back: a job that was put off in what is the future now waits for as long as it was put
/// off then, from now on, and not until that time comes again. A time that a caller named stays. Asked again, by whatever
/// process, it changes nothing. Says how many.
///
/// # Errors
/// When the database fails.
pub fn after_a_step_back(connection: &mut PgConnection) -> Result<usize, DbError> {
    // What is nearer than a second may be two of the server's processors that don't agree.
    let sql =
        "UPDATE jobs SET run_at = clock_timestamp() + put_off_ms * interval '1 millisecond', version = version + 1
         WHERE state = 'scheduled' AND put_off_ms IS NOT NULL
           AND run_at > clock_timestamp() + put_off_ms * interval '1 millisecond' + interval '1 second'";
    Ok(diesel::sql_query(sql).execute(connection)?)
}

/// Notices that the database's clock was set back.
#[derive(Debug, Default)]
pub struct StepsBack {
    last: Option<(DateTime<Utc>, Instant)>,
}

impl StepsBack {
    /// The clock said `said` at `at`: it was set back since the last time. The first time nobody knows, and it may have been.
    pub fn noticed(&mut self, said: DateTime<Utc>, at: Instant) -> bool {
        let back = self.last.is_none_or(|(time, since)| {
            let passed = TimeDelta::from_std(at.saturating_duration_since(since)).unwrap_or(TimeDelta::MAX);
            time.checked_add_signed(passed).is_some_and(|expected| expected - said > TimeDelta::seconds(1))
        });
        self.last = Some((said, at));
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_noticed_once() {
        let (start, began) = (Utc::now(), Instant::now());
        let mut steps = StepsBack::default();
        for (passed, off, noticed) in [
            (0, 0, true),
            (1, 0, false),
            (2, -3600, true),
            (3, -3600, false),
            (4, 0, false),
            (5, 0, false),
            (9, -2, true),
        ] {
            let said = start + TimeDelta::seconds(passed + off);
            let at = began + Duration::from_secs(u64::try_from(passed).unwrap());
            assert_eq!(steps.noticed(said, at), noticed, "after {passed} s");
        }
    }
}
