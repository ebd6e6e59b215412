//! The days of history: made ahead, and dropped when all of a day is past its retention.
//!
//! Tables partitioned by the day of the job's id share their days and go together. Needs the rights of the schema's
//! owner: the service's role takes that role on for as long as it works here.

use std::collections::BTreeSet;

use chrono::{DateTime, Days, NaiveDate, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Date, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::DbError;

/// The tables that are partitioned by day. The first one says when a day is over.
pub const TABLES: [&str; 4] = ["finished_jobs", "attempts", "job_log", "result_parts"];
/// Days kept ready before and after today.
const DAYS_BEHIND: u64 = 1;
const DAYS_AHEAD: u64 = 7;

/// The UTC day whose partition holds this id.
pub fn day_of(id: Uuid) -> NaiveDate {
    let ms = i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX);
    DateTime::<Utc>::from_timestamp_millis(ms).unwrap_or_default().date_naive()
}

/// Makes the partitions from yesterday to a week ahead, by the database's clock. Cheap when they are there.
///
/// # Errors
/// When the database fails, or the role may not act as the schema's owner.
pub fn ensure(connection: &mut PgConnection) -> Result<(), DbError> {
    let today = today(connection)?;
    let first = today.checked_sub_days(Days::new(DAYS_BEHIND)).unwrap_or(today);
    let missing = missing_days(connection, first, DAYS_BEHIND + DAYS_AHEAD + 1)?;
    missing.into_iter().try_for_each(|day| ensure_day(connection, day))
}

/// Makes one day's partitions, in a transaction of its own.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_day(connection: &mut PgConnection, day: NaiveDate) -> Result<(), DbError> {
    let owner = owner(connection)?;
    connection.transaction(|connection| {
        // Two that make the same day take turns; the second finds it there.
        connection.batch_execute(&format!(
            "SET LOCAL ROLE {owner}; SELECT pg_advisory_xact_lock(hashtext('slowlane partitions'))"
        ))?;
        for table in TABLES {
            connection.batch_execute(&create_sql(table, day))?;
        }
        Ok(())
    })
}

/// Runs `work`, which writes history of these jobs; when one's day isn't there, makes their days and runs it again.
/// Call it outside a transaction.
///
/// # Errors
/// What `work` fails with otherwise, or as [`ensure`].
pub fn with_days_of<T>(
    connection: &mut PgConnection,
    ids: impl Iterator<Item = Uuid>,
    work: impl Fn(&mut PgConnection) -> Result<T, DbError>,
) -> Result<T, DbError> {
    match work(connection) {
        Err(error) if error.is_missing_partition() => {
            let days: BTreeSet<NaiveDate> = ids.map(day_of).collect();
            days.into_iter().try_for_each(|day| ensure_day(connection, day))?;
            work(connection)
        }
        outcome => outcome,
    }
}

fn create_sql(table: &str, day: NaiveDate) -> String {
    let name = partition_name(table, day);
    format!(
        "DO $do$ BEGIN
            IF to_regclass('slowlane.{name}') IS NULL THEN
                CREATE TABLE slowlane.{name} (LIKE slowlane.{table} INCLUDING ALL);
            END IF;
            -- One that was detached, and not dropped any more, is taken back.
            IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = 'slowlane.{name}'::regclass) THEN
                EXECUTE format('ALTER TABLE slowlane.{table} ATTACH PARTITION slowlane.{name} FOR VALUES FROM (%L) TO (%L)',
                               slowlane.first_id_of('{day}'), slowlane.first_id_of('{day}'::date + 1));
            END IF;
         END $do$"
    )
}

fn partition_name(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

#[derive(QueryableByName)]
struct DayRow {
    #[diesel(sql_type = Date)]
    day: NaiveDate,
}

fn today(connection: &mut PgConnection) -> Result<NaiveDate, DbError> {
    let row = diesel::sql_query("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS day");
    Ok(row.get_result::<DayRow>(connection)?.day)
}

fn missing_days(connection: &mut PgConnection, first: NaiveDate, days: u64) -> Result<Vec<NaiveDate>, DbError> {
    // Of each table: one alone may have been dropped, or taken out.
    let tables = TABLES.map(|table| format!("'{table}'")).join(", ");
    let rows = diesel::sql_query(format!(
        "SELECT d::date AS day FROM generate_series($1::date, $1::date + $2::int - 1, interval '1 day') d
          WHERE EXISTS (SELECT FROM unnest(ARRAY[{tables}]) AS t(name)
              WHERE NOT EXISTS (SELECT FROM pg_inherits i
                  WHERE i.inhrelid = to_regclass('slowlane.' || t.name || '_' || to_char(d, 'YYYYMMDD')) AND NOT i.inhdetachpending))
          ORDER BY 1"
    ))
    .bind::<Date, _>(first)
    .bind::<BigInt, _>(i64::try_from(days).unwrap_or(i64::MAX))
    .load::<DayRow>(connection)?;
    Ok(rows.into_iter().map(|row| row.day).collect())
}

#[derive(QueryableByName)]
struct OwnerRow {
    #[diesel(sql_type = Text)]
    owner: String,
}

/// The schema's owner, as an SQL identifier.
fn owner(connection: &mut PgConnection) -> Result<String, DbError> {
    let row = diesel::sql_query(
        "SELECT quote_ident(pg_get_userbyid(relowner)) AS owner FROM pg_class WHERE oid = 'slowlane.jobs'::regclass",
    );
    Ok(row.get_result::<OwnerRow>(connection)?.owner)
}

fn lock_timeout(connection: &mut PgConnection) -> Result<String, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        value: String,
    }
    Ok(diesel::sql_query("SELECT current_setting('lock_timeout') AS value").get_result::<Row>(connection)?.value)
}

/// One partition of one table.
#[derive(Clone, Debug, QueryableByName)]
struct Partition {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Date)]
    day: NaiveDate,
    #[diesel(sql_type = Nullable<Bool>)]
    detaching: Option<bool>,
}

/// Drops the days whose newest `finished_at` is before `keep_from`. A day that somebody is reading is tried again
/// at the next call. Says how many days went.
///
/// # Errors
/// When the database fails in another way than by a lock that is held too long.
pub fn retire(connection: &mut PgConnection, keep_from: DateTime<Utc>) -> Result<usize, DbError> {
    let owner = owner(connection)?;
    let before = lock_timeout(connection)?;
    connection.batch_execute(&format!("SET ROLE {owner}; SET lock_timeout = 100"))?;
    let outcome = retire_as_owner(connection, keep_from);
    connection.batch_execute(&format!("RESET ROLE; SET lock_timeout = '{before}'"))?;
    outcome
}

fn retire_as_owner(connection: &mut PgConnection, keep_from: DateTime<Utc>) -> Result<usize, DbError> {
    let mut gone = 0;
    for day in finished_days(connection, keep_from)? {
        match retire_day(connection, day) {
            Ok(()) => gone += 1,
            Err(DbError::Busy(_)) => log::debug!("{day} is still being read; it goes at a later try"),
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Days that are over: before the kept ones, nothing in them ended later than that, and nothing is still to end. A day whose first table is
/// gone while others remain was interrupted, and counts.
fn finished_days(connection: &mut PgConnection, keep_from: DateTime<Utc>) -> Result<Vec<NaiveDate>, DbError> {
    let limit = keep_from.date_naive();
    let mut days: Vec<NaiveDate> = Vec::new();
    for table in TABLES {
        for partition in partitions(connection, table)? {
            if partition.day < limit && !days.contains(&partition.day) {
                days.push(partition.day);
            }
        }
    }
    days.sort();
    let mut over = Vec::new();
    for day in days {
        if !is_needed(connection, day, keep_from)? {
            over.push(day);
        }
    }
    Ok(over)
}

fn is_needed(connection: &mut PgConnection, day: NaiveDate, keep_from: DateTime<Utc>) -> Result<bool, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        found: bool,
    }
    let row = diesel::sql_query(
        "SELECT EXISTS (SELECT FROM slowlane.finished_jobs
           WHERE id >= slowlane.first_id_of($1) AND id < slowlane.first_id_of($1 + 1) AND finished_at >= $2)
             OR EXISTS (SELECT FROM slowlane.jobs
           WHERE id >= slowlane.first_id_of($1) AND id < slowlane.first_id_of($1 + 1)) AS found",
    )
    .bind::<Date, _>(day)
    .bind::<Timestamptz, _>(keep_from)
    .get_result::<Row>(connection)?;
    Ok(row.found)
}

/// DETACH CONCURRENTLY, then DROP: a plain DROP that waits behind one open SELECT would block every insert and read
/// of the whole table.
fn retire_day(connection: &mut PgConnection, day: NaiveDate) -> Result<(), DbError> {
    diesel::sql_query(
        "DELETE FROM slowlane.results WHERE job_id >= slowlane.first_id_of($1) AND job_id < slowlane.first_id_of($1 + 1)",
    )
    .bind::<Date, _>(day)
    .execute(connection)?;
    for table in TABLES {
        let found = partitions(connection, table)?;
        // Only one partition of a table may be on its way out: one left by an interrupted try goes first.
        for partition in found.iter().filter(|p| p.detaching == Some(true)) {
            let name = &partition.name;
            connection
                .batch_execute(&format!("ALTER TABLE slowlane.{table} DETACH PARTITION slowlane.{name} FINALIZE"))?;
        }
        for partition in found.iter().filter(|p| p.day == day) {
            let name = &partition.name;
            if partition.detaching == Some(false) {
                let sql = format!("ALTER TABLE slowlane.{table} DETACH PARTITION slowlane.{name} CONCURRENTLY");
                connection.batch_execute(&sql)?;
            }
            connection.batch_execute(&format!("DROP TABLE slowlane.{name}"))?;
        }
    }
    Ok(())
}

/// The partitions of a table by name, those that are detached but not dropped yet included (`detaching` is null).
fn partitions(connection: &mut PgConnection, table: &str) -> Result<Vec<Partition>, DbError> {
    Ok(diesel::sql_query(
        "SELECT c.relname::text AS name, to_date(right(c.relname, 8), 'YYYYMMDD') AS day, i.inhdetachpending AS detaching
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
          WHERE c.relnamespace = 'slowlane'::regnamespace AND c.relkind = 'r'
            AND c.relname ~ ('^' || $1 || '_[0-9]{8}$') ORDER BY c.relname",
    )
    .bind::<Text, _>(table)
    .load(connection)?)
}
