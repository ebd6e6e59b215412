//! What HTTP asks the queue for, and what it is answered: a job, the key that makes repeating it harmless, and what became of
//! both.
//!
//! Knows no thread and no statement.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::queue::model::{Job, JobOutcome, JobSpec, JobState, JobStatus};

/// Who asks: everything that is kept belongs to one. Until callers have keys, everybody who may ask is one and the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal(Arc<str>);

impl Principal {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Default for Principal {
    fn default() -> Principal {
        Principal(Arc::from("default"))
    }
}

/// One request: a job, and beside it what no body can name.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Who asks.
    pub principal: Principal,
    /// The id that the job gets: a UUIDv7 made in this process, so that a lost commit can be looked up.
    pub id: Uuid,
    /// The job, checked.
    pub spec: JobSpec,
    /// The job that this one is a retry of.
    pub retry_of: Option<Uuid>,
    /// The caller's key, where it gave one.
    pub idempotency: Option<Idempotency>,
}

impl Submission {
    /// A job that is asked for once.
    pub fn new(principal: Principal, spec: JobSpec) -> Submission {
        Submission { principal, id: Uuid::now_v7(), spec, retry_of: None, idempotency: None }
    }

    /// What the job is when its row has just been written.
    pub(super) fn written(&self, state: JobState, created_at: DateTime<Utc>, run_at: DateTime<Utc>) -> Job {
        Job {
            id: self.id,
            spec: JobSpec { run_at: Some(run_at), ..self.spec.clone() },
            retry_of: self.retry_of,
            status: JobStatus::new(state, created_at, run_at),
            outcome: JobOutcome::default(),
        }
    }
}

/// An `Idempotency-Key` of the principal's, and what it was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Method and path.
    pub route: String,
    /// The key, unquoted.
    pub key: String,
    /// A digest of the request: the same key with another one is refused.
    pub fingerprint: Vec<u8>,
}

/// What became of a request. The row is committed.
#[derive(Clone, Debug)]
pub enum Accepted {
    /// A new job.
    Created(Job),
    /// The job that the same key made before, as it is now.
    Replayed(Job),
}

/// Why there is no job.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// Too many requests wait already.
    #[error("too many requests wait to be written")]
    Busy,
    /// The database can't be reached. Nothing was written.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The connection was lost in the commit, and what became of it couldn't be learned in time. The same
    /// idempotency key, or the job's id, settles it later.
    #[error("the outcome is unknown: the connection was lost in the commit")]
    OutcomeUnknown(Uuid),
    /// The key was used before, for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The job that this is a retry of has an unfinished one.
    #[error("the job has an unfinished retry")]
    RetryUnfinished,
    /// The upload that it names isn't there, or not ready.
    #[error("there is no such upload")]
    NoUpload,
    /// Its id, made by this process' clock, is more than a day off the database's.
    #[error("this process' clock is more than a day off the database's")]
    ClockDifference,
    /// The statement failed in a way that no caller can mend.
    #[error("the statement failed: {0}")]
    Failed(String),
}
