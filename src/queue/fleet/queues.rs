//! Queues as an operator sees them: paused, so that nothing of one is claimed, and served again.
//!
//! A pause is a row, which every claim looks at by one probe of an index. It holds from the moment at which it is committed for
//! every claim whose snapshot is younger; those that are older hold a lock on `jobs` at that moment, and are waited for.

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};

use crate::db::{DbError, prepared};

/// The longest reason for a pause, in characters.
pub const MAX_REASON_CHARS: usize = 512;
/// What the connections that claim are for: `slowlane`, a blank and this are their `application_name`, to which a pooler may
/// add something.
pub const CLAIMERS: &str = "control";

/// What was said of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = crate::db::schema::queues)]
pub struct QueueRow {
    /// Its name.
    pub name: String,
    /// Since when nothing of it is claimed.
    pub paused_at: Option<DateTime<Utc>>,
    /// Why.
    pub paused_reason: Option<String>,
}

/// Pauses a queue. One that is paused stays so since then, and has the new reason where one is given.
///
/// # Errors
/// When the database fails.
pub fn pause(connection: &mut PgConnection, name: &str, reason: Option<&str>) -> Result<(), DbError> {
    prepared(
        "INSERT INTO queues AS q (name, paused_at, paused_reason, updated_at)
         VALUES ($1, clock_timestamp(), $2, clock_timestamp())
         ON CONFLICT (name) DO UPDATE SET paused_at = coalesce(q.paused_at, excluded.paused_at),
             paused_reason = coalesce(excluded.paused_reason, CASE WHEN q.paused_at IS NOT NULL THEN q.paused_reason END),
             updated_at = excluded.updated_at",
    )
    .bind::<Text, _>(name)
    .bind::<Nullable<Text>, _>(reason)
    .execute(connection)?;
    Ok(())
}

/// Has a queue served again. `false` when it wasn't paused.
///
/// # Errors
/// When the database fails.
pub fn resume(connection: &mut PgConnection, name: &str) -> Result<bool, DbError> {
    let changed = prepared(
        "UPDATE queues SET paused_at = NULL, paused_reason = NULL, updated_at = clock_timestamp()
          WHERE name = $1 AND paused_at IS NOT NULL",
    )
    .bind::<Text, _>(name)
    .execute(connection)?;
    Ok(changed > 0)
}

/// Whatever was said of queues, by their names.
///
/// # Errors
/// When the database fails.
pub fn all(connection: &mut PgConnection) -> Result<Vec<QueueRow>, DbError> {
    use crate::db::schema::queues::dsl;
    Ok(dsl::queues.order(dsl::name).select(QueueRow::as_select()).load(connection)?)
}

/// What was said of one queue.
///
/// # Errors
/// When the database fails.
pub fn one(connection: &mut PgConnection, name: &str) -> Result<Option<QueueRow>, DbError> {
    use crate::db::schema::queues::dsl;
    Ok(dsl::queues.find(name).select(QueueRow::as_select()).first(connection).optional()?)
}

/// Somebody knows a queue of this name: a job waits or runs in it, a process serves it, or it was paused before.
///
/// # Errors
/// When the database fails.
pub fn exists(connection: &mut PgConnection, name: &str) -> Result<bool, DbError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Bool)]
        found: bool,
    }
    let row = prepared(
        "SELECT EXISTS (SELECT FROM queues WHERE name = $1) OR EXISTS (SELECT FROM workers WHERE $1 = ANY(queues))
             OR EXISTS (SELECT FROM jobs WHERE queue = $1) AS found",
    );
    // A look at all unfinished jobs, where no other answer is found first.
    Ok(row.bind::<Text, _>(name).get_result::<Found>(connection)?.found)
}

#[derive(QueryableByName)]
struct Transaction {
    #[diesel(sql_type = Text)]
    transaction: String,
}

/// The transactions that may still claim by a snapshot from before now. Called after a pause was committed: a claim locks its
/// tables before it takes its snapshot, so one that is older has its lock by now, and one that isn't here sees the
/// pause. Ends of jobs are among them, which take as long.
///
/// # Errors
/// When the database fails.
pub fn claims_in_flight(connection: &mut PgConnection) -> Result<Vec<String>, DbError> {
    let rows = prepared(
        "SELECT DISTINCT l.virtualtransaction AS transaction
           FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE l.locktype = 'relation' AND l.relation = 'slowlane.jobs'::regclass AND l.mode = 'RowExclusiveLock'
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.pid <> pg_backend_pid() AND starts_with(a.application_name, 'slowlane ' || $1)",
    )
    .bind::<Text, _>(CLAIMERS)
    .load::<Transaction>(connection)?;
    Ok(rows.into_iter().map(|row| row.transaction).collect())
}

/// How many of these transactions haven't ended.
///
/// # Errors
/// When the database fails.
pub fn unended(connection: &mut PgConnection, transactions: &[String]) -> Result<i64, DbError> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let row =
        prepared("SELECT count(DISTINCT virtualtransaction) AS count FROM pg_locks WHERE virtualtransaction = ANY($1)");
    Ok(row.bind::<Array<Text>, _>(transactions).get_result::<Count>(connection)?.count)
}
