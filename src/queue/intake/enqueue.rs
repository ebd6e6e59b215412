//! Enqueueing on an application's own connection, inside its own transaction.
//!
//! Calls the SQL function `slowlane.enqueue`, so that the connection's role needs no right on any table and may have any
//! `search_path`. What the function would refuse is refused here first: an error of the server's would end the
//! application's transaction.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use uuid::Uuid;

use crate::queue::model::{InvalidJob, JobSpec, SPEC, bind_spec};

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

/// Puts a job into the queue within the transaction that `connection` is in: it is there when that commits, and gone
/// when it is rolled back. Says the job's id. Workers are told at the commit.
///
/// The connection is any of an application's own to the queue's database. Its role needs what the role `slowlane_client`
/// has: USAGE on the schema `slowlane` and EXECUTE on `slowlane.enqueue`. The job is as durable as its transaction:
/// with `synchronous_commit = off` a crash of the server may lose both.
///
/// ```no_run
/// use diesel::prelude::*;
/// use slowlane::queue::{self, JobSpec, RawJson};
///
/// # fn example(connection: &mut PgConnection) -> Result<(), Box<dyn std::error::Error>> {
/// let args = RawJson::of(&serde_json::json!({"statements": [{"sql": "ANALYZE orders"}]}))?;
/// let job = JobSpec::new("execute", args);
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
pub fn insert(connection: &mut PgConnection, job: &JobSpec) -> Result<Uuid, InsertError> {
    enqueue(connection, job, true)
}

/// As [`insert()`], and tells nobody: workers find the job when they look for themselves, within 1.2 s.
///
/// A NOTIFY takes a lock of the whole database while its transaction commits. Where many small transactions enqueue, this
/// lets them commit side by side, which is several times faster.
///
/// # Errors
/// As [`insert()`].
pub fn insert_without_notify(connection: &mut PgConnection, job: &JobSpec) -> Result<Uuid, InsertError> {
    enqueue(connection, job, false)
}

#[derive(QueryableByName)]
struct Enqueued {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

fn enqueue(connection: &mut PgConnection, job: &JobSpec, notify: bool) -> Result<Uuid, InsertError> {
    job.check()?;
    let arguments: Vec<String> = SPEC.iter().enumerate().map(|(n, name)| format!("{name} => ${}", n + 2)).collect();
    // Not kept prepared: the connection may reach its server through a pooler.
    let sql = format!("SELECT slowlane.enqueue(notify => $1, {}) AS id", arguments.join(", "));
    let query = diesel::sql_query(sql).into_boxed().bind::<Bool, _>(notify);
    Ok(bind_spec(query, job).get_result::<Enqueued>(connection)?.id)
}
