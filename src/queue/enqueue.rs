//! Enqueueing on an application's own connection, inside its own transaction.
//!
//! Calls the SQL function `slowlane.enqueue`, so that the connection's role needs no right on any table and may have any
//! `search_path`. What the function would refuse is refused here first: an error of the server's would end the
//! application's transaction.

use chrono::Datelike;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Json, Jsonb, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::time_zone;
use crate::queue::job::{
    MAX_ARGS_BYTES, MAX_ARGS_DEPTH, MAX_LABEL_CHARS, MAX_LABELS, MAX_LOCK_TIMEOUT_MS, MAX_MAX_ATTEMPTS, MAX_NAME_CHARS,
    MAX_PRIORITY, MAX_RESULT_TTL_MS, MAX_TIMEOUT_MS, NewJob, RawJson,
};

/// A field of a job that no queue accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct InvalidJob {
    /// Which one.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
}

/// Why there is no job.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// A field has no valid value. Nothing was sent: the transaction goes on.
    #[error(transparent)]
    Invalid(#[from] InvalidJob),
    /// The database refused it or can't be reached. A transaction can only be rolled back after it.
    #[error(transparent)]
    Database(#[from] diesel::result::Error),
}

/// So that `?` works in a transaction whose errors are Diesel's.
impl From<InsertError> for diesel::result::Error {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Invalid(invalid) => diesel::result::Error::QueryBuilderError(Box::new(invalid)),
            InsertError::Database(error) => error,
        }
    }
}

impl NewJob {
    /// Checks what every queue checks. Whether there is such a kind, queue or target is known to processes alone.
    ///
    /// # Errors
    /// The first field that has no valid value.
    pub fn check(&self) -> Result<(), InvalidJob> {
        let name = |field, text: &str| {
            let fits = (1..=MAX_NAME_CHARS).contains(&text.chars().count()) && !text.contains('\0');
            expect(fits, field, || format!("a name of 1 to {MAX_NAME_CHARS} characters"))
        };
        name("kind", &self.kind)?;
        name("queue", &self.queue)?;
        name("target", &self.target)?;
        check_args(self.args.text())?;
        integer("priority", i64::from(self.priority), 0, i64::from(MAX_PRIORITY))?;
        expect(self.run_at.is_none_or(|time| (1..=9999).contains(&time.year())), "run_at", || {
            "a time of the years 1 to 9999".to_owned()
        })?;
        integer("timeout_ms", self.timeout_ms, 1, MAX_TIMEOUT_MS)?;
        integer("max_attempts", i64::from(self.max_attempts), 1, i64::from(MAX_MAX_ATTEMPTS))?;
        integer("result_ttl_ms", self.result_ttl_ms, 1, MAX_RESULT_TTL_MS)?;
        let is_zone = self.time_zone.as_deref().is_none_or(time_zone::is_name);
        expect(is_zone, "time_zone", || time_zone::EXPECTED.to_owned())?;
        integer("lock_timeout_ms", self.lock_timeout_ms.unwrap_or(1), 1, MAX_LOCK_TIMEOUT_MS)?;
        expect(self.labels.len() <= MAX_LABELS, "labels", || format!("at most {MAX_LABELS} labels"))?;
        let fits = |text: &str| text.chars().count() <= MAX_LABEL_CHARS && !text.contains('\0');
        let good = self.labels.iter().all(|(name, value)| !name.is_empty() && fits(name) && fits(value));
        expect(good, "labels", || format!("names of 1 to {MAX_LABEL_CHARS} characters and values of at most as many"))
    }
}

fn expect(holds: bool, field: &'static str, expected: impl FnOnce() -> String) -> Result<(), InvalidJob> {
    if holds { Ok(()) } else { Err(InvalidJob { field, expected: expected() }) }
}

fn integer(field: &'static str, value: i64, least: i64, most: i64) -> Result<(), InvalidJob> {
    expect((least..=most).contains(&value), field, || format!("an integer from {least} to {most}"))
}

fn check_args(text: &str) -> Result<(), InvalidJob> {
    expect(text.trim_start().starts_with('{'), "args", || "an object".to_owned())?;
    expect(text.len() <= MAX_ARGS_BYTES, "args", || format!("at most {MAX_ARGS_BYTES} bytes"))?;
    expect(!has_nul(text), "args", || "no \\u0000".to_owned())?;
    expect(depth(text) <= MAX_ARGS_DEPTH, "args", || format!("at most {MAX_ARGS_DEPTH} levels"))
}

/// How deep a valid document is nested.
fn depth(json: &str) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => now += 1,
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

/// A document says `\u0000`, which no text of Postgres can hold. Behind an even number of backslashes it is six plain
/// characters.
pub(crate) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let before = json.get(..at).unwrap_or_default();
        (before.len() - before.trim_end_matches('\\').len()).is_multiple_of(2)
    })
}

/// Puts a job into the queue within the transaction that `connection` is in: it is there when that commits, and gone
/// when it is rolled back. Says the job's id. Workers are told at the commit.
///
/// The connection is any of an application's own to the queue's database. Its role needs what the role `slowlane_client`
/// has: USAGE on the schema `slowlane` and EXECUTE on `slowlane.enqueue`. The job is as durable as its transaction:
/// with `synchronous_commit = off` a crash of the server may lose both.
///
/// ```no_run
/// use diesel::prelude::*;
/// use slowlane::queue::{self, NewJob, RawJson};
///
/// # fn example(connection: &mut PgConnection) -> Result<(), Box<dyn std::error::Error>> {
/// let args = RawJson::of(&serde_json::json!({"statements": [{"sql": "ANALYZE orders"}]}))?;
/// let job = NewJob::new("execute", args);
/// let id = connection.transaction(|connection| {
///     diesel::sql_query("INSERT INTO orders (customer) VALUES (7)").execute(connection)?;
///     QueryResult::Ok(queue::insert(connection, &job)?)
/// })?;
/// println!("/v1/jobs/{id}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`InsertError::Invalid`] when the job can't be stored as it is, before anything is sent.
pub fn insert(connection: &mut PgConnection, job: &NewJob) -> Result<Uuid, InsertError> {
    enqueue(connection, job, true)
}

/// As [`insert()`], and tells nobody: workers find the job when they look for themselves, within 1.2 s.
///
/// A NOTIFY takes a lock of the whole database while its transaction commits. Where many small transactions enqueue, this
/// lets them commit side by side, which is several times faster.
///
/// # Errors
/// As [`insert()`].
pub fn insert_without_notify(connection: &mut PgConnection, job: &NewJob) -> Result<Uuid, InsertError> {
    enqueue(connection, job, false)
}

#[derive(QueryableByName)]
struct Enqueued {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

fn enqueue(connection: &mut PgConnection, job: &NewJob, notify: bool) -> Result<Uuid, InsertError> {
    job.check()?;
    let labels = RawJson::of(&job.labels).map_err(|e| diesel::result::Error::SerializationError(Box::new(e)))?;
    // Not kept prepared: the connection may reach its server through a pooler.
    let row = diesel::sql_query(
        "SELECT slowlane.enqueue(kind => $1, args => $2, queue => $3, target => $4, priority => $5, run_at => $6,
                timeout_ms => $7, max_attempts => $8, labels => $9, result_ttl_ms => $10, upload => $11, notify => $12,
                time_zone => $13, lock_timeout_ms => $14) AS id",
    )
    .bind::<Text, _>(&job.kind)
    .bind::<Json, _>(&job.args)
    .bind::<Text, _>(&job.queue)
    .bind::<Text, _>(&job.target)
    .bind::<Integer, _>(i32::from(job.priority))
    .bind::<Nullable<Timestamptz>, _>(job.run_at)
    .bind::<BigInt, _>(job.timeout_ms)
    .bind::<Integer, _>(job.max_attempts)
    .bind::<Jsonb, _>(labels)
    .bind::<BigInt, _>(job.result_ttl_ms)
    .bind::<Nullable<diesel::sql_types::Uuid>, _>(job.upload)
    .bind::<Bool, _>(notify)
    .bind::<Nullable<Text>, _>(job.time_zone.as_deref())
    .bind::<Nullable<BigInt>, _>(job.lock_timeout_ms)
    .get_result::<Enqueued>(connection)?;
    Ok(row.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_are_no_levels() {
        for (json, levels) in
            [("{}", 1), (r#"{"a":[{}]}"#, 3), (r#"{"[\"{[":"]","b":"\\"}"#, 1), (r#"[[],[[]],"[["]"#, 3)]
        {
            assert_eq!(depth(json), levels, "{json}");
        }
    }

    #[test]
    fn a_nul_is_found_and_six_plain_characters_are_none() {
        for json in [r#"{"a":"\u0000"}"#, r#"{"\\\u0000":1}"#, r#"{"a":"\\\\\u0000"}"#] {
            assert!(has_nul(json), "{json}");
        }
        for json in [r#"{"a":"\\u0000"}"#, r#"{"a":"\\\\u0000"}"#, r#"{"a":"\u0001"}"#, "{}"] {
            assert!(!has_nul(json), "{json}");
        }
    }
}
