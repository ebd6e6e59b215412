//! How an attempt failed, and what the errors of our own rooms mean for a job. Those of a target's server are in `sqlstates`.

use std::fmt;
use std::time::Duration;

use crate::db::DbError;
use crate::queue::{ErrorCode, JobError};
use crate::results::ResultError;
use crate::uploads;

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

/// SQLSTATE of a statement that was cancelled.
pub const QUERY_CANCELED: &str = "57014";

/// SQLSTATE of a transaction that has to be begun again.
pub(super) const SERIALIZATION_FAILURE: &str = "40001";

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
