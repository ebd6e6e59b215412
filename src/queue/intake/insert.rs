//! The statements by which requests become rows: jobs and idempotency keys, many at a time.
//!
//! Knows no thread and no waiting caller.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Binary, Bool, Integer, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::prepared::Statement;
use crate::db::{DbError, prepared};
use crate::queue::intake::request::Submission;
use crate::queue::model::{Job, JobState, SPEC, bind_specs, sql_list, sql_parameters};
use crate::queue::record::read;

/// How long an idempotency key is kept, as an SQL interval.
pub const IDEMPOTENCY_KEY_KEPT: &str = "24 hours";

/// What one row of an insert came to.
#[derive(Clone, Debug)]
pub enum Inserted {
    /// A new job.
    Created(Job),
    /// The job that the same key made before, as it is now.
    Replayed(Job),
    /// The key was used for another request.
    KeyReused,
    /// The key names a job whose record is gone.
    Gone,
    /// The upload that it names isn't there, or not ready.
    NoUpload,
    /// The key was used before, and what for could not be learned.
    Unknown(Uuid),
}

/// One server process: the id alone may be handed out again.
#[derive(Clone, Debug, QueryableByName)]
pub struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Timestamptz)]
    backend_start: DateTime<Utc>,
}

/// The server process behind this connection.
///
/// # Errors
/// When the database fails.
pub fn backend(connection: &mut PgConnection) -> Result<Backend, DbError> {
    let sql = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    Ok(diesel::sql_query(sql).get_result(connection)?)
}

/// Ends a server process of this role and waits (up to 2 s) until it is gone, its transaction with it.
///
/// # Errors
/// [`DbError::Busy`] when it is still there.
pub fn end_backend(connection: &mut PgConnection, backend: &Backend) -> Result<(), DbError> {
    #[derive(QueryableByName)]
    struct Ended {
        #[diesel(sql_type = Bool)]
        ended: bool,
    }
    let rows = diesel::sql_query(
        "SELECT pg_terminate_backend(pid, 2000) AS ended FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2",
    )
    .bind::<Integer, _>(backend.pid)
    .bind::<Timestamptz, _>(backend.backend_start)
    .load::<Ended>(connection)?;
    if rows.iter().all(|row| row.ended) { Ok(()) } else { Err(DbError::Busy("the lost session is still ending")) }
}

/// Inserts every request by one statement and one commit. The answers are in the order of the requests.
///
/// # Errors
/// [`DbError::Query`] when one row is refused: then none is inserted.
pub fn insert(connection: &mut PgConnection, requests: &[&Submission]) -> Result<Vec<Inserted>, DbError> {
    let mut created = insert_rows(connection, requests)?;
    let repeated: Vec<&&Submission> = requests.iter().filter(|request| !created.contains_key(&request.id)).collect();
    // The rows are committed by now: whatever goes wrong from here on is no refusal of theirs.
    let mut known = look_up_keys(connection, &repeated).unwrap_or_else(|error| {
        log::warn!("what idempotency keys were used for can't be learned: {error}");
        repeated.iter().map(|request| (request.id, Inserted::Unknown(request.id))).collect()
    });
    Ok(requests
        .iter()
        .map(|request| match created.remove(&request.id) {
            Some(job) => Inserted::Created(job),
            None => match known.remove(&request.id).unwrap_or(Inserted::Gone) {
                Inserted::Gone if request.spec.upload.is_some() => Inserted::NoUpload,
                outcome => outcome,
            },
        })
        .collect())
}

/// As [`insert()`], after a commit whose outcome isn't known: rows that are there count as created.
///
/// # Errors
/// As [`insert()`].
pub fn insert_missing(connection: &mut PgConnection, requests: &[&Submission]) -> Result<Vec<Inserted>, DbError> {
    let mut found = HashMap::new();
    for request in requests {
        if let Some(job) = read::job(connection, request.id)? {
            found.insert(job.id, job);
        }
    }
    let missing: Vec<&Submission> = requests.iter().copied().filter(|r| !found.contains_key(&r.id)).collect();
    let mut inserted = insert(connection, &missing)?.into_iter();
    Ok(requests
        .iter()
        .map(|request| match found.remove(&request.id) {
            Some(job) => Inserted::Created(job),
            None => inserted.next().unwrap_or(Inserted::Gone),
        })
        .collect())
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    scheduled: bool,
}

/// The rows of the requests `i`, where `condition` holds.
fn insert_sql(condition: &str) -> String {
    let spec = sql_list(SPEC.iter().copied(), "");
    let values = sql_list(SPEC.iter().map(|name| if *name == "run_at" { "greatest(run_at, now())" } else { name }), "");
    format!(
        "INSERT INTO jobs (id, retry_of, created_at, state, queued_xid, {spec})
         SELECT id, retry_of, now(), CASE WHEN run_at > now() THEN 'scheduled' ELSE 'queued' END,
                CASE WHEN run_at > now() THEN NULL ELSE pg_current_xact_id() END, {values}
           FROM i WHERE {condition}
         RETURNING id, created_at, run_at, state = 'scheduled' AS scheduled"
    )
}

/// The parameters before the spec's: ids, what is retried, and the lowest and the highest id.
const BEFORE_SPEC: usize = 4;

/// The statement, without keys and uploads and with them: most requests have none, and what looks after them costs as
/// much as a row. An upload is locked until its user is committed, so that nobody deletes it in between.
fn statement(with_more: bool) -> String {
    const CLOCK: &str = "(SELECT require_near_clock($3, $4))";
    let columns = sql_list(["id", "retry_of"].into_iter().chain(SPEC.iter().copied()), "");
    let spec = sql_parameters(BEFORE_SPEC + 1, SPEC.len());
    if !with_more {
        let rows = insert_sql(CLOCK);
        return format!("WITH i AS MATERIALIZED (SELECT * FROM unnest($1, $2, {spec}) AS i({columns})) {rows}");
    }
    let keys = sql_parameters(BEFORE_SPEC + SPEC.len() + 1, 4);
    let rows = insert_sql("key IS NULL OR id IN (SELECT job_id FROM keys)");
    format!(
        "WITH asked AS MATERIALIZED (
            SELECT * FROM unnest($1, $2, {spec}, {keys}) WITH ORDINALITY
                AS i({columns}, principal, route, key, fingerprint, n)),
        ready AS MATERIALIZED (
            SELECT id FROM uploads WHERE id = ANY(ARRAY(SELECT upload FROM asked)) AND state = 'ready' ORDER BY id FOR SHARE),
        i AS MATERIALIZED (
            SELECT * FROM asked WHERE {CLOCK} AND (upload IS NULL OR upload IN (SELECT id FROM ready))),
        keys AS (
            INSERT INTO idempotency_keys AS k (principal, route, key, fingerprint, job_id, created_at)
            SELECT DISTINCT ON (principal, route, key) principal, route, key, fingerprint, id, now()
              FROM i WHERE key IS NOT NULL ORDER BY principal, route, key, n
            ON CONFLICT (principal, route, key) DO UPDATE
               SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, created_at = excluded.created_at
             WHERE k.created_at < now() - interval '{IDEMPOTENCY_KEY_KEPT}'
            RETURNING job_id)
        {rows}"
    )
}

fn insert_rows(connection: &mut PgConnection, requests: &[&Submission]) -> Result<HashMap<Uuid, Job>, DbError> {
    let with_more = requests.iter().any(|request| request.idempotency.is_some() || request.spec.upload.is_some());
    let statement = prepared(statement(with_more))
        .bind::<Array<diesel::sql_types::Uuid>, _>(column(requests, |r| r.id))
        .bind::<Array<Nullable<diesel::sql_types::Uuid>>, _>(column(requests, |r| r.retry_of))
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(requests.iter().map(|r| r.id).min())
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(requests.iter().map(|r| r.id).max());
    let mut statement = bind_specs(statement, &column(requests, |r| &r.spec));
    if with_more {
        statement = bind_keys(statement, requests);
    }
    let rows: Vec<Row> = statement.load(connection)?;
    let mut made: HashMap<Uuid, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
    let jobs = requests.iter().filter_map(|request| {
        let row = made.remove(&request.id)?;
        let state = if row.scheduled { JobState::Scheduled } else { JobState::Queued };
        Some((row.id, request.written(state, row.created_at, row.run_at)))
    });
    Ok(jobs.collect())
}

fn bind_keys<'s>(statement: Statement<'s>, requests: &[&'s Submission]) -> Statement<'s> {
    let key = |request: &'s Submission| request.idempotency.as_ref();
    statement
        .bind::<Array<Nullable<Text>>, _>(column(requests, |r| key(r).map(|_| r.principal.name())))
        .bind::<Array<Nullable<Text>>, _>(column(requests, |r| key(r).map(|key| key.route.as_str())))
        .bind::<Array<Nullable<Text>>, _>(column(requests, |r| key(r).map(|key| key.key.as_str())))
        .bind::<Array<Nullable<Binary>>, _>(column(requests, |r| key(r).map(|key| key.fingerprint.as_slice())))
}

fn column<'r, T>(requests: &[&'r Submission], value: impl Fn(&'r Submission) -> T) -> Vec<T> {
    requests.iter().map(|request| value(request)).collect()
}

fn look_up_keys(connection: &mut PgConnection, requests: &[&&Submission]) -> Result<HashMap<Uuid, Inserted>, DbError> {
    use crate::db::schema::idempotency_keys::dsl;
    let mut answers = HashMap::new();
    for request in requests {
        let Some(key) = &request.idempotency else { continue };
        let row: Option<(Vec<u8>, Uuid)> = dsl::idempotency_keys
            .find((request.principal.name(), &key.route, &key.key))
            .select((dsl::fingerprint, dsl::job_id))
            .first(connection)
            .optional()?;
        let answer = match row {
            Some((fingerprint, _)) if fingerprint != key.fingerprint => Inserted::KeyReused,
            Some((_, job_id)) => read::job(connection, job_id)?.map_or(Inserted::Gone, Inserted::Replayed),
            None => Inserted::Gone,
        };
        answers.insert(request.id, answer);
    }
    Ok(answers)
}

/// Forgets idempotency keys that are past their time at `now`. Says how many.
///
/// # Errors
/// When the database fails.
pub fn forget_old_keys(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<usize, DbError> {
    let sql = format!("DELETE FROM idempotency_keys WHERE created_at < $1 - interval '{IDEMPOTENCY_KEY_KEPT}'");
    Ok(diesel::sql_query(sql).bind::<Timestamptz, _>(now).execute(connection)?)
}
