//! What a kind of work is made of: the trait that it implements, its errors, the list of the kinds that a process knows, and
//! what an attempt can use.
//!
//! Knows no kind but `statement` and `validate`, which run and look at others; no HTTP, and no thread of the worker.

pub mod context;
pub mod control;
mod errors;
pub mod exactly_once;
pub mod loan;
pub mod progress;
mod registry;
pub mod statement;
pub mod validation;

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use context::{Said, Services, WorkContext};
pub use control::{JobControl, StopReason};
pub use registry::{Registry, Resolution};
pub(crate) use registry::{States, read};
pub use statement::STATEMENT;
pub use validation::Validation;

use crate::db::DbError;
use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError, JobSpec, RawJson};
use crate::results::ResultError;
use crate::uploads::{self, ContentType};

/// A kind of work: its arguments are the type itself. docs/rust.md goes through one from start to end.
///
/// Give it to a server by [`ServerBuilder::kind`](crate::app::ServerBuilder::kind), or to a [`Registry`]. The type is
/// read from a job's `args` and checked twice: when it is accepted, so that a mistake is a 422 with the field's
/// pointer, and before it runs.
/// `#[serde(deny_unknown_fields)]` makes a misspelt argument one.
///
/// ```
/// use slowlane::work::{Work, WorkContext, WorkError};
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
/// # Ok::<(), slowlane::work::CheckError>(())
/// ```
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// The kind's name in requests and rows.
    const KIND: &'static str;
    /// An attempt that ended unknown may be repeated: its effects are none, the same ones again, or committed by
    /// [`WorkContext::exactly_once`] alone. An attempt that returns [`WorkError::Retry`] is repeated whatever this
    /// says, and so is one whose first session can't be had: have a session before anything takes effect elsewhere,
    /// and return `Fail` after it.
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

    /// A job that runs this work, with every default, for [`queue::insert()`](crate::queue::insert()). Other values
    /// than the defaults are given by fields: `JobSpec { priority: 2, ..work.job()? }`.
    ///
    /// # Errors
    /// Each argument that can't be accepted.
    fn job(&self) -> Result<JobSpec, CheckError> {
        self.check().map_err(|errors| CheckError { errors })?;
        let args = RawJson::of(self).map_err(no_json)?;
        Ok(JobSpec { upload: self.upload().map(|upload| upload.id), ..JobSpec::new(Self::KIND, args) })
    }

    /// The upload that it reads, and which argument names it: a job is accepted only while the upload is there, and only
    /// if it is what the work reads. It then stays until the job has ended. Defaults to none.
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

    /// Sees to what a job has left on its target that has ended without doing so itself: its worker died and there is
    /// no other attempt, or what was in the way is gone by now. `kept` is its last checkpoint, if that was written by
    /// [`WorkContext::save_what_may_be_left`]. Called again every 30 s for a week, until all is done. Others may be
    /// at work by now: what isn't certainly the job's own has to stay. Has to be done by `until`.
    ///
    /// # Errors
    /// When it couldn't be looked at; it is tried again.
    fn clean_up_after(_kept: &RawJson, _session: &mut Session, _until: Instant) -> Result<CleanedUp, WorkError> {
        Ok(CleanedUp { all: true, told: Vec::new() })
    }

    /// Does the work, on a thread of its own that may wait.
    ///
    /// # Errors
    /// [`WorkError`] decides what becomes of the job.
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Self::Output, WorkError>;
}

/// What [`Work::clean_up_after`] did.
#[derive(Clone, Debug, Default)]
pub struct CleanedUp {
    /// Nothing more is to be done.
    pub all: bool,
    /// What the job's log says of it.
    pub told: Vec<(LogLevel, String)>,
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
    /// What it has to be. `None` where that makes no difference.
    pub reads: Option<UploadTypes>,
}

/// What an upload has to be so that the work can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadTypes {
    /// A JSON pointer from the arguments to the one that says so, such as `/format`.
    pub pointer: &'static str,
    /// What the upload may have been sent as.
    pub types: &'static [ContentType],
}

impl UploadArg {
    /// The argument at `pointer` names the upload `id`, of whatever type.
    pub fn new(pointer: &'static str, id: Uuid) -> UploadArg {
        UploadArg { pointer, id, reads: None }
    }

    /// The argument at `pointer` says that the upload is of one of these types: a job is accepted for no other one.
    /// One that comes in by SQL or from Rust isn't looked at: the work has to compare [`Upload::content_type`] as well.
    ///
    /// [`Upload::content_type`]: crate::uploads::Upload::content_type
    pub fn reading(self, pointer: &'static str, types: &'static [ContentType]) -> UploadArg {
        UploadArg { reads: Some(UploadTypes { pointer, types }), ..self }
    }
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
/// `?` makes the right one of Diesel's errors and of [`PqError`](crate::pq::PqError): what may pass is tried again.
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

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkError::Retry(error) | WorkError::Fail(error) | WorkError::Unavailable(error) => error.fmt(f),
            WorkError::Cancelled => f.write_str("the attempt was to stop"),
            WorkError::Snooze(delay) => write!(f, "the work wants to run again in {delay:?}"),
        }
    }
}

impl std::error::Error for WorkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WorkError::Retry(error) | WorkError::Fail(error) | WorkError::Unavailable(error) => Some(error),
            WorkError::Cancelled | WorkError::Snooze(_) => None,
        }
    }
}

impl WorkError {
    /// A failure, to be tried again or not as the error itself says.
    pub fn of(error: JobError) -> WorkError {
        let error = error.bounded();
        if error.retryable { WorkError::Retry(error) } else { WorkError::Fail(error) }
    }
}

/// The kind that looks at other jobs: [`mod@validation`].
pub const VALIDATE: &str = "validate";
/// The kind that looks at a target.
pub const CHECK: &str = "check";
/// The kinds whose jobs a target for statements takes: what their callers send holds no SQL.
pub const ON_STATEMENTS_ONLY: [&str; 2] = [STATEMENT, CHECK];

/// SQLSTATE of a statement that was cancelled.
pub const QUERY_CANCELED: &str = "57014";
/// SQLSTATE of a transaction that has to be begun again.
const SERIALIZATION_FAILURE: &str = "40001";

impl WorkError {
    /// The same error, by its own code where it is a recovery conflict: a standby stopped the work, so that it could go on with
    /// what its primary sends. On a standby nothing else is a serialization failure. Of a session that was ended, not always
    /// the reason arrives: then the hint names this one.
    #[must_use]
    pub fn with_recovery_conflict_named(self, on_standby: bool) -> WorkError {
        match self {
            WorkError::Retry(error) | WorkError::Fail(error) if is_recovery_conflict(&error, on_standby) => {
                let code = ErrorCode::RecoveryConflict.into();
                WorkError::of(JobError { code, ..error }.retryable().with_hint(STANDBY_HINT))
            }
            WorkError::Retry(error)
                if on_standby && error.code == ErrorCode::ConnectionLost && error.sqlstate.is_none() =>
            {
                WorkError::Retry(
                    error.with_hint(format!("if the standby ended it so that it could go on: {STANDBY_HINT}")),
                )
            }
            error => error,
        }
    }
}

const STANDBY_HINT: &str = "raise max_standby_streaming_delay on the standby, set hot_standby_feedback = on there, or make the statement shorter";

fn is_recovery_conflict(error: &JobError, on_standby: bool) -> bool {
    // One that is a deadlock with the replay, and one of a server that was promoted meanwhile, are known by their words.
    match error.sqlstate.as_deref() {
        Some(SERIALIZATION_FAILURE) if on_standby => true,
        Some(SERIALIZATION_FAILURE | "40P01") | None => error.message.contains("due to conflict with recovery"),
        _ => false,
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
            uploads::ReadError::Thread(_) => no_thread(&error),
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
            ResultError::Thread(_) => no_thread(&error),
            ResultError::Compression(_) => {
                WorkError::Retry(JobError::new(ErrorCode::Internal, error.to_string()).retryable())
            }
            ResultError::Damaged(_) | ResultError::Manifest(_) | ResultError::WriterFailed => {
                WorkError::Fail(JobError::new(ErrorCode::Internal, error.to_string()))
            }
        }
    }
}

/// This process has no thread to spare: another one may have, or this one later.
fn no_thread(error: &dyn fmt::Display) -> WorkError {
    let error = JobError::new(ErrorCode::Internal, error.to_string()).retryable();
    WorkError::Retry(error.with_hint("allow the process more threads, or run fewer jobs in it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pq::{PqError, PqErrorKind};

    fn refused(sqlstate: Option<&str>, message: &str) -> WorkError {
        let kind = if sqlstate.is_some() { PqErrorKind::Server } else { PqErrorKind::ConnectionLost };
        PqError { sqlstate: sqlstate.map(str::to_owned), ..PqError::of(kind, message) }.into()
    }

    fn told(error: WorkError) -> (String, bool) {
        match error {
            WorkError::Retry(error) => (error.code, true),
            WorkError::Fail(error) => (error.code, false),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_standby_stops_is_known_in_any_language() {
        let foreign = "storniere Anfrage wegen Konflikt mit der Wiederherstellung";
        let english = "terminating connection due to conflict with recovery";
        for (sqlstate, message, on_standby, code, retryable) in [
            (Some("40001"), foreign, true, "recovery_conflict", true),
            (Some("40001"), foreign, false, "sql_error", true),
            (Some("40001"), english, false, "recovery_conflict", true),
            (Some("40P01"), "canceling statement due to conflict with recovery", true, "recovery_conflict", true),
            (Some("40P01"), "deadlock detected", true, "sql_error", true),
            (None, english, true, "recovery_conflict", true),
            // Its database was dropped on the primary.
            (Some("57P04"), english, true, "connection_lost", false),
        ] {
            let met = told(refused(sqlstate, message).with_recovery_conflict_named(on_standby));
            assert_eq!(met, (code.to_owned(), retryable), "{sqlstate:?} {message}");
        }
    }

    #[test]
    fn limits_of_the_role_are_named() {
        for (sqlstate, setting, code, retryable) in [
            ("25P04", "transaction_timeout", "transaction_timeout", false),
            ("25P03", "idle_in_transaction_session_timeout", "connection_lost", true),
            ("57P05", "idle_session_timeout", "connection_lost", true),
        ] {
            let error = refused(Some(sqlstate), "Verbindung wird abgebrochen");
            assert_eq!(told(error.clone()), (code.to_owned(), retryable), "{sqlstate}");
            let (WorkError::Retry(error) | WorkError::Fail(error)) = error else { panic!("{error:?}") };
            assert!(error.hint.is_some_and(|hint| hint.contains(setting)), "{sqlstate}");
        }
    }
}
