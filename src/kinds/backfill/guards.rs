//! What must be so before a batch begins: standbys that keep up, no vacuum of the table, nobody who waits for it, and a
//! condition of the caller's. Looked at outside of any transaction.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kinds::backfill::Misplaced;
use crate::kinds::backfill::batch::{Params, try_expression, without_position};
use crate::kinds::backfill::table::Table;
use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::work::context::WorkContext;
use crate::work::{ArgError, WorkError};

/// The pauses between two looks: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// A standby that has said nothing for so long, and hasn't everything, isn't just between two of its regular reports.
const SILENT: Duration = Duration::from_secs(20);
/// The argument that is the caller's condition.
const CONDITION: &str = "/guards/condition";
/// How long the caller's condition may take.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(10);

/// What must be so before a batch begins; nothing, by default.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    /// No standby that is connected is further behind than this, in milliseconds. Needs `pg_monitor`.
    pub max_replica_lag_ms: Option<u64>,
    /// Nobody vacuums the table or a partition of it.
    #[serde(default)]
    pub pause_on_autovacuum: bool,
    /// No more sessions than this wait for a lock of the table or of a row in it.
    pub max_lock_waiters: Option<u64>,
    /// An SQL expression that is true, and neither false nor NULL.
    pub condition: Option<String>,
}

impl Guards {
    /// What is wrong with them before a server has seen them.
    pub fn check(&self) -> Option<ArgError> {
        let condition = self.condition.as_deref()?;
        let detail = "expected an SQL expression that is true when the work may go on";
        (condition.trim().is_empty() || condition.contains('\0')).then(|| ArgError::new("/guards/condition", detail))
    }
}

/// Looks at guards for one attempt.
pub(super) struct Watch<'g> {
    guards: &'g Guards,
    table: &'g str,
    lag: Lag,
}

impl<'g> Watch<'g> {
    /// Tries the caller's condition.
    pub fn new(session: &mut Session, guards: &'g Guards, table: &'g Table) -> Result<Watch<'g>, Misplaced> {
        if let Some(condition) = &guards.condition {
            try_expression(session, CONDITION, condition, "", Params::default())?;
        }
        Ok(Watch { guards, table: &table.oid, lag: Lag::default() })
    }

    /// Looks at each guard once, whatever it says.
    pub fn look(&mut self, ctx: &WorkContext<'_>, session: &mut Session) -> Result<(), Misplaced> {
        let named = |error: WorkError| match &error {
            WorkError::Fail(failed) if failed.code == ErrorCode::GuardNotAllowed => {
                Misplaced::at("/guards/max_replica_lag_ms", error)
            }
            WorkError::Fail(failed) if failed.code == ErrorCode::GuardFailed => Misplaced::at(CONDITION, error),
            _ => Misplaced::at("/guards", error),
        };
        self.reason(ctx, session).map(drop).map_err(named)
    }

    /// Waits until the work may go on, for as long as the attempt may run. What it waits for is told by `report`, and once in
    /// the log.
    pub fn pass(
        &mut self,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        report: impl Fn(&str),
    ) -> Result<(), WorkError> {
        let mut pause = PAUSE.0;
        let mut told = false;
        while let Some(reason) = self.reason(ctx, session)? {
            report(&format!("waiting: {reason}"));
            if !std::mem::replace(&mut told, true) {
                ctx.log(LogLevel::Info, &format!("waits before the next batch: {reason}"));
            }
            ctx.wait(pause)?;
            pause = pause.saturating_mul(2).min(PAUSE.1);
        }
        if told {
            ctx.log(LogLevel::Info, "goes on");
        }
        Ok(())
    }

    /// Why the next batch has to wait.
    ///
    /// # Errors
    /// When a guard can't be looked at, or the attempt is to end.
    pub fn reason(&mut self, ctx: &WorkContext<'_>, session: &mut Session) -> Result<Option<String>, WorkError> {
        ctx.check()?;
        if let Some(most) = self.guards.max_replica_lag_ms.map(Duration::from_millis) {
            let lag = self.lag.measure(session)?;
            if lag > most {
                return Ok(Some(format!("replica lag {:.1} s", lag.as_secs_f64())));
            }
        }
        if self.guards.pause_on_autovacuum && self.count(session, VACUUMS)? > 0 {
            return Ok(Some("the table is being vacuumed".to_owned()));
        }
        if let Some(most) = self.guards.max_lock_waiters {
            let waiters = self.count(session, LOCK_WAITERS)?;
            if waiters > most {
                return Ok(Some(format!("lock waiters on the table: {waiters}")));
            }
        }
        match &self.guards.condition {
            Some(condition) if !holds(ctx, session, condition)? => Ok(Some("the condition isn't true".to_owned())),
            _ => Ok(None),
        }
    }

    fn count(&self, session: &mut Session, condition: &str) -> Result<u64, WorkError> {
        let sql = format!(
            "SELECT pg_catalog.count(DISTINCT l.pid) FROM pg_catalog.pg_locks l
              WHERE l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
                AND l.pid <> pg_catalog.pg_backend_pid() AND {condition}
                AND (l.relation = $1::oid OR l.relation IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)))"
        );
        let rows = session.query(&sql, &[Some(self.table)])?;
        Ok(rows.get(0, 0).and_then(|count| count.parse().ok()).unwrap_or(0))
    }
}

/// Who vacuums a table holds one of these locks: so every role can see it. An ANALYZE and an index that is built concurrently hold
/// the same, a VACUUM FULL and whatever else keeps everybody out the other.
const VACUUMS: &str =
    "l.granted AND l.locktype = 'relation' AND l.mode IN ('ShareUpdateExclusiveLock', 'AccessExclusiveLock')";
/// Whoever waits for the table, or for a row of it that a third one holds: the first of these holds the lock of its place in the
/// row's queue, and waits for a transaction, of which nothing says where. What a serializable transaction has read is no lock.
const LOCK_WAITERS: &str = "(NOT l.granted OR l.locktype = 'tuple' AND l.mode <> 'SIReadLock')";

/// The caller's condition. It can change nothing, and NULL isn't true.
fn holds(ctx: &WorkContext<'_>, session: &mut Session, condition: &str) -> Result<bool, WorkError> {
    let longest = ctx.statement_ms(CONDITION_TIMEOUT);
    session.execute_batch(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {longest}"))?;
    let rows = session.query(&format!("SELECT ((\n{condition}\n)) IS TRUE"), &[]);
    session.command("ROLLBACK")?;
    let rows = rows.map_err(|error| match without_position(error) {
        WorkError::Fail(error) => WorkError::Fail(JobError {
            code: ErrorCode::GuardFailed.into(),
            message: format!("{CONDITION}: {}", error.message),
            ..error
        }),
        other => other,
    })?;
    Ok(rows.get(0, 0) == Some("t"))
}

/// How far the standbys are behind. The server's own number stands still while a standby says nothing: so the time is
/// measured at which the log had reached what no standby has replayed yet.
#[derive(Default)]
struct Lag {
    /// Ends of the log, and when they were seen; oldest first.
    ends: VecDeque<(u64, Instant)>,
    /// What the most silent standby said last of the time, by its own clock, and since when by ours it has said nothing newer.
    said: Option<(String, Instant)>,
}

impl Lag {
    fn measure(&mut self, session: &mut Session) -> Result<Duration, WorkError> {
        let rows = session.query(
            "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
                    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0'),
                    pg_catalog.min(pg_catalog.pg_wal_lsn_diff(replay_lsn, '0/0')),
                    (extract(epoch FROM pg_catalog.max(replay_lag)) * 1000)::bigint,
                    extract(epoch FROM pg_catalog.min(reply_time))
               FROM pg_catalog.pg_stat_replication r WHERE state IN ('streaming', 'catchup')
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                                 WHERE s.active_pid = r.pid AND s.slot_type = 'logical')",
            &[],
        )?;
        if rows.get(0, 0) != Some("t") {
            let error =
                JobError::new(ErrorCode::GuardNotAllowed, "the target's role may not see how far standbys are behind");
            return Err(WorkError::Fail(
                error.with_hint("in psql, as a superuser: GRANT pg_monitor TO the role of the target"),
            ));
        }
        let number = |column| rows.get(0, column).and_then(|text| text.parse::<u64>().ok());
        // Without a standby that is connected, nobody is behind.
        let (Some(end), Some(replayed)) = (number(1), number(2)) else { return Ok(Duration::ZERO) };
        let reported = number(3).map_or(Duration::ZERO, Duration::from_millis);
        let now = Instant::now();
        let silent = self.silent(rows.get(0, 4).unwrap_or_default(), now);
        Ok(self.of(end, replayed, reported, silent, now))
    }

    /// How long the most silent standby has said nothing, which said `said` last.
    fn silent(&mut self, said: &str, now: Instant) -> Duration {
        match &self.said {
            Some((last, since)) if last == said => now.saturating_duration_since(*since),
            _ => {
                self.said = Some((said.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    /// The log ends at `end`, and all have replayed it up to `replayed`; the lag that they reported last is `reported`,
    /// `silent` ago.
    fn of(&mut self, end: u64, replayed: u64, reported: Duration, silent: Duration, now: Instant) -> Duration {
        self.ends.retain(|(end, _)| *end > replayed);
        if end <= replayed {
            return Duration::ZERO;
        }
        if self.ends.back().is_none_or(|(last, _)| *last < end) {
            self.ends.push_back((end, now));
        }
        let waited = self.ends.front().map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at));
        let silent = if silent > SILENT { silent } else { Duration::ZERO };
        waited.max(reported).max(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_silent_by_our_clock() {
        let (mut lag, now) = (Lag::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(lag.silent("2001-01-01", now), Duration::ZERO, "its clock may be anywhere");
        assert_eq!(lag.silent("2001-01-01", now + 21 * second), 21 * second);
        assert_eq!(lag.silent("2001-01-02", now + 22 * second), Duration::ZERO);
    }

    #[test]
    fn a_standby_is_behind_since_the_log_reached_what_it_lacks() {
        let (mut lag, now) = (Lag::default(), Instant::now());
        let second = Duration::from_secs(1);
        let none = Duration::ZERO;
        assert_eq!(lag.of(100, 100, second, second, now), none, "it has everything, whatever it reported before");
        assert_eq!(lag.of(200, 100, none, second, now), none);
        assert_eq!(lag.of(300, 100, none, second, now + second), second);
        // It has what was first, and lacks what came a second later.
        assert_eq!(lag.of(300, 200, none, second, now + 3 * second), 2 * second);
        assert_eq!(lag.of(300, 200, none, 30 * second, now + 3 * second), 30 * second, "it is silent");
        assert_eq!(lag.of(300, 200, 7 * second, second, now + 3 * second), 7 * second);
        assert_eq!(lag.of(300, 300, 7 * second, second, now + 4 * second), none);
    }
}
