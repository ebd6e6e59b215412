//! What is set on a session of a target before a job has it: its name, its limits, and what the job or the target asks for.
//!
//! All else stays as the login has it, for it changes what statements mean: its time zone, the order of days and months,
//! its `search_path`, whatever its role, its database and its connection string say. Of the login's own limits the smaller
//! ones stay. One statement on either driver, which also tells whether those settings are still the ones of the session.
//! The form of rows is pinned by [`ROW_FORM_SQL`], where rows are a result.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};

use crate::pq::{PqError, Session};

/// Within a transaction: values are written in one form, whatever the login says. What they are, and how they are read,
/// stays: `DateStyle` keeps its order of days and months, and the time zone is the login's.
pub const ROW_FORM_SQL: &str = "SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres';
    SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1; SET LOCAL xmlbinary = 'base64'";

/// The longest limit that a server takes, in milliseconds.
const LONGEST_MS: u64 = 2_147_483_647;

/// What somebody asks of a session, beside what its target says.
#[derive(Clone, Debug, Default)]
pub struct SessionAsks {
    /// The time zone, by name.
    pub time_zone: Option<String>,
    /// How long a statement waits for a lock.
    pub lock_timeout: Option<Duration>,
}

/// What a login is limited to by its role, its database or its connection string. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// Its own `statement_timeout`.
    pub statement_timeout: Option<Duration>,
    /// Its own `lock_timeout`.
    pub lock_timeout: Option<Duration>,
    /// How long a statement waits for a lock by what was set: never longer than the login's own.
    pub waits_for_locks: Option<Duration>,
}

impl OwnLimits {
    /// The smaller of `wanted` and the login's own `statement_timeout`, in milliseconds, as it can be set.
    pub fn statement_ms(&self, wanted: Duration) -> u64 {
        least(Some(wanted), self.statement_timeout)
    }

    /// The smaller of `wanted` and the login's own `lock_timeout`, in milliseconds, as it can be set: 0 is no limit.
    pub fn lock_ms(&self, wanted: Option<Duration>) -> u64 {
        least(wanted, self.lock_timeout)
    }
}

fn least(wanted: Option<Duration>, own: Option<Duration>) -> u64 {
    wanted.into_iter().chain(own).map(millis).min().unwrap_or(0)
}

/// At least 1: a server takes 0 for no limit.
fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(LONGEST_MS).clamp(1, LONGEST_MS)
}

/// What is set before a job.
pub(super) struct Prologue<'a> {
    pub application_name: &'a str,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub time_zone: Option<&'a str>,
    pub work_mem: Option<&'a str>,
    pub read_only: bool,
}

/// What is known of a session as it begins.
pub(super) struct Begun {
    pub pid: i32,
    /// `None` when the role that the login takes on may not see it.
    pub backend_start: Option<DateTime<Utc>>,
    pub limits: OwnLimits,
    /// A digest of what is said of the login's settings now.
    pub login: i64,
    /// The server is a standby.
    pub on_standby: bool,
}

/// What is said of the settings of the login of the server process `a`.
macro_rules! login_sql {
    () => {
        "(SELECT pg_catalog.hashtextextended(coalesce(pg_catalog.string_agg(
                           pg_catalog.concat_ws(' ', d.setdatabase, d.setrole, d.setconfig), ' '
                           ORDER BY d.setdatabase, d.setrole), ''), 0)
                  FROM pg_catalog.pg_db_role_setting d
                 WHERE d.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, a.usesysid])
                   AND d.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, a.datid]))"
    };
}

/// Every name is qualified: the `search_path` is the login's. A limit is shown with its unit, and every unit is one of an
/// interval. What is read comes first, in a part of its own.
const SQL: &str = concat!(
    "
    WITH own AS MATERIALIZED (
        SELECT a.pid,
               pg_catalog.to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS backend_start,
               CASE WHEN l.statement OPERATOR(pg_catalog.<>) '0' THEN (pg_catalog.date_part('epoch',
                   l.statement::pg_catalog.interval) OPERATOR(pg_catalog.*) 1000::pg_catalog.float8)::pg_catalog.int8
                   END AS statement_ms,
               CASE WHEN l.lock OPERATOR(pg_catalog.<>) '0' THEN (pg_catalog.date_part('epoch',
                   l.lock::pg_catalog.interval) OPERATOR(pg_catalog.*) 1000::pg_catalog.float8)::pg_catalog.int8
                   END AS lock_ms,
               ", login_sql!(), " AS login
          FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a,
               (SELECT pg_catalog.current_setting('statement_timeout') AS statement,
                       pg_catalog.current_setting('lock_timeout') AS lock) l)
    SELECT own.pid, own.backend_start, own.statement_ms, own.lock_ms, own.login,
           pg_catalog.pg_is_in_recovery() AS on_standby,
           pg_catalog.set_config('application_name', $1::pg_catalog.text, false) AS named,
           pg_catalog.set_config('statement_timeout',
               LEAST(own.statement_ms, $2::pg_catalog.int8)::pg_catalog.text, false) AS limited,
           pg_catalog.set_config('lock_timeout',
               LEAST(own.lock_ms, $3::pg_catalog.int8)::pg_catalog.text, false) AS patient,
           CASE WHEN $4::pg_catalog.text IS NOT NULL THEN
               pg_catalog.set_config('TimeZone', $4::pg_catalog.text, false) END AS zone,
           CASE WHEN $5::pg_catalog.text IS NOT NULL THEN
               pg_catalog.set_config('work_mem', $5::pg_catalog.text, false) END AS memory,
           CASE WHEN $6::pg_catalog.bool THEN
               pg_catalog.set_config('default_transaction_read_only', 'on', false) END AS only_reads
      FROM own"
);

/// The digest of the login's settings, asked of a session that was opened just now: those that it has.
const LOGIN_SQL: &str =
    concat!("SELECT ", login_sql!(), " AS login FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a");

#[derive(QueryableByName)]
struct LoginRow {
    #[diesel(sql_type = BigInt)]
    login: i64,
}

/// As [`LOGIN_SQL`], on a libpq session.
pub(super) fn login_of_session(session: &mut Session) -> Result<i64, PqError> {
    let rows = session.query(LOGIN_SQL, &[])?;
    let unreadable = || PqError::unreadable("the server's answer about the login's settings can't be read");
    rows.get(0, 0).and_then(|text| text.parse().ok()).ok_or_else(unreadable)
}

/// As [`LOGIN_SQL`], on a Diesel connection.
pub(super) fn login_of_diesel(connection: &mut PgConnection) -> QueryResult<i64> {
    Ok(diesel::sql_query(LOGIN_SQL).get_result::<LoginRow>(connection)?.login)
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Nullable<Text>)]
    backend_start: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    statement_ms: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    lock_ms: Option<i64>,
    #[diesel(sql_type = BigInt)]
    login: i64,
    #[diesel(sql_type = Bool)]
    on_standby: bool,
}

impl Prologue<'_> {
    /// Sets it on a session that is as its login made it.
    pub fn on_session(&self, session: &mut Session) -> Result<Begun, PqError> {
        let (statement, lock) = (millis(self.statement_timeout).to_string(), millis(self.lock_timeout).to_string());
        let read_only = if self.read_only { "t" } else { "f" };
        let rows = session.query(
            SQL,
            &[
                Some(self.application_name),
                Some(&statement),
                Some(&lock),
                self.time_zone,
                self.work_mem,
                Some(read_only),
            ],
        )?;
        let number = |column| rows.get(0, column).and_then(|text| text.parse().ok());
        Ok(self.begun(Row {
            pid: session.backend_pid(),
            backend_start: rows.get(0, 1).map(str::to_owned),
            statement_ms: number(2),
            lock_ms: number(3),
            login: number(4).unwrap_or_default(),
            on_standby: rows.get(0, 5) == Some("t"),
        }))
    }

    /// As [`Prologue::on_session`], on a Diesel connection.
    pub fn on_diesel(&self, connection: &mut PgConnection) -> QueryResult<Begun> {
        let ms = |limit| i64::try_from(millis(limit)).unwrap_or(i64::MAX);
        let row = diesel::sql_query(SQL)
            .bind::<Text, _>(self.application_name)
            .bind::<BigInt, _>(ms(self.statement_timeout))
            .bind::<BigInt, _>(ms(self.lock_timeout))
            .bind::<Nullable<Text>, _>(self.time_zone)
            .bind::<Nullable<Text>, _>(self.work_mem)
            .bind::<Bool, _>(self.read_only)
            .get_result::<Row>(connection)?;
        Ok(self.begun(row))
    }

    fn begun(&self, row: Row) -> Begun {
        let limit = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let (statement_timeout, lock_timeout) = (limit(row.statement_ms), limit(row.lock_ms));
        let waits_for_locks = Some(lock_timeout.map_or(self.lock_timeout, |own| own.min(self.lock_timeout)));
        Begun {
            pid: row.pid,
            backend_start: row.backend_start.and_then(|text| text.parse().ok()),
            limits: OwnLimits { statement_timeout, lock_timeout, waits_for_locks },
            login: row.login,
            on_standby: row.on_standby,
        }
    }
}

/// The server refused a time zone that was asked for, by its SQLSTATE (a driver may pass none on) and its words. Of
/// those only names of settings are in no language. A zone with leap seconds is refused without any.
pub fn refuses_time_zone(sqlstate: Option<&str>, message: &str) -> bool {
    const INVALID_PARAMETER_VALUE: &str = "22023";
    message.contains("TimeZone")
        || match sqlstate {
            Some(state) => state == INVALID_PARAMETER_VALUE && !message.contains("work_mem"),
            None => message.contains("leap seconds"),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_a_server_refuses_is_known_by_its_sqlstate_or_the_settings_name() {
        for (sqlstate, message, refused) in [
            (Some("22023"), "ungültiger Wert für Parameter »TimeZone«: »x«", true),
            (None, "invalid value for parameter \"TimeZone\": \"x\"", true),
            (Some("22023"), "Zeitzone »x« verwendet anscheinend Schaltsekunden", true),
            (None, "time zone \"x\" appears to use leap seconds", true),
            (Some("22023"), "invalid value for parameter \"work_mem\": \"x\"", false),
            (Some("57014"), "canceling statement due to statement timeout", false),
            (None, "canceling statement due to statement timeout", false),
        ] {
            assert_eq!(refuses_time_zone(sqlstate, message), refused, "{sqlstate:?} {message}");
        }
    }

    #[test]
    fn of_two_limits_the_smaller_one_counts_and_none_is_none() {
        let second = Duration::from_secs(1);
        let none = OwnLimits::default();
        let own = OwnLimits { statement_timeout: Some(second), lock_timeout: Some(second), ..none };
        assert_eq!(
            (none.statement_ms(2 * second), own.statement_ms(2 * second), own.statement_ms(second / 2)),
            (2_000, 1_000, 500)
        );
        assert_eq!((none.lock_ms(None), own.lock_ms(None), own.lock_ms(Some(second / 2))), (0, 1_000, 500));
        assert_eq!((none.lock_ms(Some(Duration::ZERO)), none.statement_ms(Duration::MAX)), (1, LONGEST_MS));
    }
}
