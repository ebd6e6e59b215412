//! Kinds of work: the trait that one implements, the list of them, and what an attempt can use.
//!
//! A new kind touches its own file and one line of the list in `registry.rs`. Knows the queue's types, results and targets; knows no
//! HTTP and no thread of the worker.

pub mod backfill;
pub mod carrier_report;
pub mod check;
pub mod context;
pub mod control;
pub mod exactly_once;
pub mod execute;
pub mod import;
pub mod loan;
pub mod maintain;
pub mod params;
mod prepared;
pub mod query;
pub mod refresh;
mod registry;
mod sql;
pub mod statement;
pub mod validate;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use context::{Said, Services, WorkContext};
pub use control::{JobControl, StopReason};
pub use registry::{Named, Registry};
pub use statement::STATEMENT;
pub use validate::Validation;

use crate::db::DbError;
use crate::pq::{PqError, PqErrorKind};
use crate::queue::{ErrorCode, JobError, NewJob, RawJson};
use crate::results::ResultError;
use crate::uploads;

/// A kind of work: its arguments are the type itself. docs/rust.md goes through one from start to end.
///
/// Give it to a server by [`ServerBuilder::kind`](crate::app::ServerBuilder::kind), or to a [`Registry`]. The type is read
/// from a job's `args` and checked twice: when it is accepted, so that a mistake is a 422 with the field's pointer, and before it
/// runs.
/// `#[serde(deny_unknown_fields)]` makes a misspelt argument one.
///
/// ```
/// use slowlane::kinds::{Work, WorkContext, WorkError};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Greet { name: String }
///
/// impl Work for Greet {
///     const KIND: &'static str = "greet";
///     const REPEATABLE: bool = true;
///     type Output = String;
///     fn run(&self, _ctx: &mut WorkContext<'_>) -> Result<String, WorkError> {
///         Ok(format!("hello {}", self.name))
///     }
/// }
///
/// let job = Greet { name: "you".to_owned() }.job()?;
/// assert_eq!((job.kind.as_str(), job.args.text()), ("greet", r#"{"name":"you"}"#));
/// # Ok::<(), slowlane::kinds::CheckError>(())
/// ```
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// The kind's name in requests and rows.
    const KIND: &'static str;
    /// An attempt that ended unknown may be repeated: its effects are none, the same ones again, or committed by
    /// [`WorkContext::exactly_once`] alone. An attempt that returns [`WorkError::Retry`] is repeated whatever this says, and so is one
    /// whose first session can't be had: have a session before anything takes effect elsewhere, and return `Fail` after it.
    const REPEATABLE: bool;
    /// Nothing that it does outlives a lost lease: it only reads, or what it writes is committed by
    /// [`WorkContext::exactly_once`]. It goes on while the queue can't be reached; work that isn't fenced is stopped
    /// then. Defaults to no.
    const FENCED: bool = false;
    /// It can be paused, and goes on from its checkpoint when it is resumed: what it did up to there isn't done again.
    /// Defaults to no.
    const RESUMABLE: bool = false;
    /// It keeps a result that can be fetched. Defaults to no.
    const PRODUCES_RESULT: bool = false;
    /// [`Work::validate`] asks the target. Defaults to no.
    const VALIDATES: bool = false;
    /// What the job shows as `output`.
    type Output: Serialize;

    /// What the types can't say about the arguments. Defaults to nothing.
    ///
    /// # Errors
    /// Each argument that can't be accepted, with what was expected.
    fn check(&self) -> Result<(), Vec<ArgError>> {
        Ok(())
    }

    /// A job that runs this work, with every default, for [`queue::insert()`](crate::queue::insert()). Other values than
    /// the defaults are given by fields: `NewJob { priority: 2, ..work.job()? }`.
    ///
    /// # Errors
    /// Each argument that can't be accepted.
    fn job(&self) -> Result<NewJob, CheckError> {
        self.check().map_err(|errors| CheckError { errors })?;
        let args = RawJson::of(self).map_err(no_json)?;
        Ok(NewJob { upload: self.upload().map(|upload| upload.id), ..NewJob::new(Self::KIND, args) })
    }

    /// The upload that it reads, and which argument names it: a job is accepted only while the upload is there, which
    /// then stays until the job has ended. Defaults to none.
    fn upload(&self) -> Option<UploadArg> {
        None
    }

    /// Looks at what the work would meet on its target, and changes nothing: for `POST /v1/jobs/validate`. Called where
    /// `VALIDATES` says so, with arguments that were checked.
    ///
    /// # Errors
    /// What says nothing about the job, such as a target that can't be reached. What stands in its way is among the
    /// [`Validation`]'s problems.
    fn validate(&self, _ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        Ok(Validation { valid: true, ..Validation::default() })
    }

    /// Does the work, on a thread of its own that may wait.
    ///
    /// # Errors
    /// [`WorkError`] decides what becomes of the job.
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Self::Output, WorkError>;
}

/// An argument that can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgError {
    /// A JSON pointer from the arguments, such as `/sql`.
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

impl ArgError {
    /// An error about the argument at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> ArgError {
        ArgError { pointer: pointer.into(), detail: detail.into() }
    }
}

/// An argument that names an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadArg {
    /// A JSON pointer from the arguments, such as `/upload`.
    pub pointer: &'static str,
    /// The upload.
    pub id: Uuid,
}

/// Arguments that a kind refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arguments were refused: {}", listed(.errors))]
pub struct CheckError {
    /// Each of them.
    pub errors: Vec<ArgError>,
}

fn listed(errors: &[ArgError]) -> String {
    errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; ")
}

fn no_json(error: serde_json::Error) -> CheckError {
    CheckError { errors: vec![ArgError::new("", format!("expected arguments that have a JSON form: {error}"))] }
}

/// How an attempt failed, and what that means for the job.
///
/// | | the job | an attempt is charged |
/// | --- | --- | --- |
/// | [`Retry`](WorkError::Retry) | is `scheduled` again, later each time; `failed` when none is left | yes |
/// | [`Fail`](WorkError::Fail) | is `failed` | yes |
/// | [`Cancelled`](WorkError::Cancelled) | is `cancelled`, `paused`, `failed` with code `timeout`, or handed back, as it was asked | if it ended |
/// | [`Snooze`](WorkError::Snooze) | is `scheduled` for then | no |
/// | [`Unavailable`](WorkError::Unavailable) | is `scheduled`, later each time up to a minute | no |
///
/// `?` makes the right one of Diesel's errors and of [`PqError`]: what may pass is tried again.
///
/// ```
/// use slowlane::{JobError, WorkError};
///
/// fn run() -> Result<(), WorkError> {
///     Err(diesel::result::Error::NotFound)?
/// }
/// assert!(matches!(run(), Err(WorkError::Fail(error)) if error.code == "sql_error"));
/// let later = WorkError::of(JobError::new("rates_missing", "today's rates aren't there yet").retryable());
/// assert!(matches!(later, WorkError::Retry(_)));
/// ```
#[derive(Clone, Debug)]
pub enum WorkError {
    /// Worth another attempt, if there is one left.
    Retry(JobError),
    /// Not worth another attempt.
    Fail(JobError),
    /// It stopped because it was asked to.
    Cancelled,
    /// It wants to run again later, uncharged.
    Snooze(Duration),
    /// Nothing has begun, because what it needs can't be reached: again later and later, uncharged.
    Unavailable(JobError),
}

impl WorkError {
    /// A failure, to be tried again or not as the error itself says.
    pub fn of(error: JobError) -> WorkError {
        let error = error.bounded();
        if error.retryable { WorkError::Retry(error) } else { WorkError::Fail(error) }
    }
}

/// The kind that looks at other jobs: [`mod@validate`].
pub const VALIDATE: &str = "validate";
/// The kind that looks at a target: [`mod@check`].
pub const CHECK: &str = "check";
/// The kinds whose jobs a target for statements takes: what their callers send holds no SQL.
pub const ON_STATEMENTS_ONLY: [&str; 2] = [STATEMENT, CHECK];

/// SQLSTATE of a statement that was cancelled.
pub const QUERY_CANCELED: &str = "57014";

impl From<PqError> for WorkError {
    fn from(error: PqError) -> Self {
        let retryable = error.retryable() || error.sqlstate.as_deref() == Some(QUERY_CANCELED);
        let code = match (&error.kind, error.sqlstate.as_deref()) {
            (_, Some(QUERY_CANCELED)) => ErrorCode::CancelledByServer,
            (_, Some("25006")) => ErrorCode::ReadOnly,
            (_, Some("42501")) => ErrorCode::PermissionDenied,
            (_, Some("55P03")) => ErrorCode::LockTimeout,
            // A session or a transaction that was idle, or open, for longer than its role may.
            (_, Some("25P03" | "25P04")) => ErrorCode::ConnectionLost,
            // The server ended the session, or is about to end or to begin.
            (_, Some(state)) if state.starts_with("57P0") || state.starts_with("08") => ErrorCode::ConnectionLost,
            (PqErrorKind::Server | PqErrorKind::Usage, _) => ErrorCode::SqlError,
            _ => ErrorCode::ConnectionLost,
        };
        WorkError::of(JobError {
            code: code.into(),
            message: error.message,
            retryable,
            sqlstate: error.sqlstate,
            detail: error.detail,
            hint: error.hint,
            position: error.position,
        })
    }
}

impl From<diesel::result::Error> for WorkError {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind, Error};
        let (detail, hint, position) = match &error {
            Error::DatabaseError(_, info) => (
                info.details().map(str::to_owned),
                info.hint().map(str::to_owned),
                info.statement_position().and_then(|p| u32::try_from(p).ok()),
            ),
            _ => (None, None, None),
        };
        // Diesel passes no SQLSTATE on; what it tells apart is enough to know what is worth another try.
        let serialization = matches!(&error, Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _));
        let message = error.to_string();
        let cancelled = message.starts_with("canceling statement") && !message.contains("lock timeout");
        let (code, retryable) = match DbError::from(error) {
            DbError::Unavailable(_) => (ErrorCode::ConnectionLost, true),
            _ if cancelled => (ErrorCode::CancelledByServer, true),
            DbError::Busy(_) => (ErrorCode::LockTimeout, true),
            DbError::Query(_) => (ErrorCode::SqlError, serialization || message.contains("deadlock detected")),
        };
        let sqlstate = cancelled.then(|| QUERY_CANCELED.to_owned());
        let error = JobError { code: code.into(), message, retryable, sqlstate, detail, hint, position };
        WorkError::of(error)
    }
}

/// What the queue's connections fail with; a target's speak for themselves.
impl From<DbError> for WorkError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Query(error) => error.into(),
            DbError::Busy(_) | DbError::Unavailable(_) => {
                WorkError::Retry(JobError::new(ErrorCode::QueueUnavailable, error.to_string()).retryable())
            }
        }
    }
}

impl From<uploads::ReadError> for WorkError {
    fn from(error: uploads::ReadError) -> Self {
        match error {
            uploads::ReadError::Db(error) => error.into(),
            uploads::ReadError::Gone => WorkError::Fail(
                JobError::new(ErrorCode::UploadGone, "the upload isn't there any more, or a part of it")
                    .with_hint("upload it again, and submit another job"),
            ),
        }
    }
}

impl From<ResultError> for WorkError {
    fn from(error: ResultError) -> Self {
        match error {
            ResultError::Db(error) => error.into(),
            // Whatever this attempt says now is refused by its fence.
            ResultError::LeaseLost => WorkError::Cancelled,
            // What is expired or deleted meanwhile makes room.
            ResultError::StoreFull => WorkError::Retry(
                JobError::new(ErrorCode::ResultStoreFull, error.to_string())
                    .retryable()
                    .with_hint("delete results that are no longer needed, or give the queue's database more disk"),
            ),
            ResultError::TooLarge => WorkError::Fail(
                JobError::new(ErrorCode::ValueTooLarge, error.to_string()).with_hint("return less in one value"),
            ),
            ResultError::Damaged(_) => WorkError::Fail(JobError::new(ErrorCode::Internal, error.to_string())),
        }
    }
}
