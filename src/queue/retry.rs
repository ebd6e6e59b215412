//! Retrying a job that ended: a new job with the same arguments, which names the old one. Finished rows never change.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use uuid::Uuid;

use crate::db::DbError;
use crate::queue::job::{Job, JobState, NewJob};
use crate::queue::read;

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
    Retry(Box<NewJob>),
}

/// What a retry of a job would be.
///
/// # Errors
/// When the database fails.
pub fn of(connection: &mut PgConnection, id: Uuid) -> Result<RetryOf, DbError> {
    Ok(match read::job(connection, id)? {
        None => RetryOf::NotFound,
        Some(job) if matches!(job.state, JobState::Failed | JobState::Cancelled) => {
            RetryOf::Retry(Box::new(again(job)))
        }
        Some(job) => RetryOf::NotRetryable(job.state),
    })
}

fn again(job: Job) -> NewJob {
    NewJob {
        kind: job.kind,
        args: job.args,
        target: job.target,
        queue: job.queue,
        priority: job.priority,
        run_at: None,
        timeout_ms: job.timeout_ms,
        max_attempts: job.max_attempts,
        labels: job.labels,
        result_ttl_ms: job.result_ttl_ms,
        time_zone: job.time_zone,
        lock_timeout_ms: job.lock_timeout_ms,
        // The kind says it.
        upload: None,
    }
}

/// The unfinished retry of a job.
///
/// # Errors
/// When the database fails.
pub fn unfinished(connection: &mut PgConnection, id: Uuid) -> Result<Option<Uuid>, DbError> {
    use crate::db::schema::jobs::dsl;
    Ok(dsl::jobs.filter(dsl::retry_of.eq(id)).select(dsl::id).first(connection).optional()?)
}
