//! Retrying a job that ended: a new job with the same arguments, which names the old one. Finished rows never change.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::model::{Job, JobSpec, JobState, JobStatus};
use crate::queue::record::read;

/// The unique index that lets a job have one unfinished retry at a time.
pub const ONE_AT_A_TIME: &str = "jobs_retry_of";

/// What a request to retry a job finds.
#[derive(Clone, Debug)]
pub enum RetryOf {
    /// There is no such job.
    NotFound,
    /// It waits, runs or succeeded.
    NotRetryable(JobState),
    /// It failed or was cancelled: this is what runs again.
    Retry(Box<JobSpec>),
}

/// What a retry of a job would be.
///
/// # Errors
/// When the database fails.
pub fn of(connection: &mut PgConnection, id: Uuid) -> Result<RetryOf, DbError> {
    Ok(match read::job(connection, id)? {
        None => RetryOf::NotFound,
        // It runs now, and which upload it reads is the kind's to say.
        Some(Job { status: JobStatus { state: JobState::Failed | JobState::Cancelled, .. }, spec, .. }) => {
            RetryOf::Retry(Box::new(JobSpec { run_at: None, upload: None, ..spec }))
        }
        Some(job) => RetryOf::NotRetryable(job.status.state),
    })
}

/// The unfinished retry of a job.
///
/// # Errors
/// When the database fails.
pub fn unfinished(connection: &mut PgConnection, id: Uuid) -> Result<Option<Uuid>, DbError> {
    use crate::db::schema::jobs::dsl;
    Ok(dsl::jobs.filter(dsl::retry_of.eq(id)).select(dsl::id).first(connection).optional()?)
}
