//! What a target's errors mean for a job: one table for both drivers, by SQLSTATE.
//!
//! libpq passes on the server's. Diesel passes none on, but tells some classes apart. The others are known by the words
//! with which a server's message begins.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::db::DbError;
use crate::pq::{PqError, PqErrorKind, is_worth_another_try};
use crate::queue::{ErrorCode, JobError};
use crate::work::error::{QUERY_CANCELED, SERIALIZATION_FAILURE, WorkError};

/// The code of an error of the server's, and whether the work is worth another attempt. `lost`: the session is gone, or
/// never was.
fn code_of(sqlstate: Option<&str>, lost: bool) -> (ErrorCode, bool) {
    let code = match sqlstate {
        Some(QUERY_CANCELED) => ErrorCode::CancelledByServer,
        Some("25006") => ErrorCode::ReadOnly,
        Some("42501") => ErrorCode::PermissionDenied,
        Some("55P03") => ErrorCode::LockTimeout,
        Some("25P04") => ErrorCode::TransactionTimeout,
        // A session that was idle in a transaction for longer than its role may.
        Some("25P03") => ErrorCode::ConnectionLost,
        // The server ended the session, or is about to end or to begin.
        Some(state) if state.starts_with("57P0") || state.starts_with("08") => ErrorCode::ConnectionLost,
        _ if lost => ErrorCode::ConnectionLost,
        _ => ErrorCode::SqlError,
    };
    let retryable = sqlstate.map_or(lost, |state| state == QUERY_CANCELED || is_worth_another_try(state));
    (code, retryable)
}

/// Beginnings of the server's messages, and their SQLSTATEs. The first one that fits counts.
const WORDS: [(&str, &str); 19] = [
    ("canceling statement due to lock timeout", "55P03"),
    ("canceling statement due to conflict with recovery", "40P01"),
    ("canceling statement", QUERY_CANCELED),
    ("could not obtain lock on", "55P03"),
    ("deadlock detected", "40P01"),
    ("permission denied", "42501"),
    ("must be owner of", "42501"),
    ("terminating connection due to administrator command", "57P01"),
    ("terminating connection due to unexpected postmaster exit", "57P01"),
    ("terminating connection because of crash", "57P02"),
    ("terminating connection due to idle-in-transaction timeout", "25P03"),
    ("terminating connection due to transaction timeout", "25P04"),
    ("terminating connection due to idle-session timeout", "57P05"),
    ("the database system is", "57P03"),
    ("sorry, too many clients already", "53300"),
    ("remaining connection slots are reserved", "53300"),
    ("out of memory", "53200"),
    ("syntax error", "42601"),
    ("division by zero", "22012"),
];

/// The SQLSTATE of an error of Diesel's, as far as it can be known.
fn sqlstate_of(error: &DieselError) -> Option<&'static str> {
    let DieselError::DatabaseError(kind, info) = error else { return None };
    // Where the session ended, its severity comes first.
    let message = info.message().trim_start_matches("FATAL:").trim_start();
    Some(match kind {
        DatabaseErrorKind::UniqueViolation => "23505",
        DatabaseErrorKind::ForeignKeyViolation => "23503",
        DatabaseErrorKind::NotNullViolation => "23502",
        DatabaseErrorKind::CheckViolation => "23514",
        DatabaseErrorKind::RestrictViolation => "23001",
        DatabaseErrorKind::ExclusionViolation => "23P01",
        DatabaseErrorKind::SerializationFailure => SERIALIZATION_FAILURE,
        DatabaseErrorKind::ReadOnlyTransaction => "25006",
        _ => WORDS.iter().find(|(words, _)| message.starts_with(words))?.1,
    })
}

/// What to do about a limit of the role's that ended the session, by the server's SQLSTATE or, where none arrives, by
/// its words.
fn hint_at_limit(sqlstate: Option<&str>, message: &str) -> Option<&'static str> {
    let is = |state: &str, words: &str| sqlstate == Some(state) || (sqlstate.is_none() && message.contains(words));
    if is("25P04", "due to transaction timeout") {
        return Some("raise transaction_timeout for the target's role or its server, or give the job less to do");
    }
    if is("25P03", "due to idle-in-transaction timeout") {
        return Some(
            "raise idle_in_transaction_session_timeout for the target's role: the worker was busy with something else",
        );
    }
    is("57P05", "due to idle-session timeout")
        .then_some("raise idle_session_timeout for the target's role: the worker was busy with something else")
}

impl From<PqError> for WorkError {
    fn from(error: PqError) -> Self {
        let lost = !matches!(error.kind, PqErrorKind::Server | PqErrorKind::Usage);
        let (code, retryable) = code_of(error.sqlstate.as_deref(), lost);
        let hint = hint_at_limit(error.sqlstate.as_deref(), &error.message).map(str::to_owned);
        WorkError::of(JobError {
            code: code.into(),
            message: error.message,
            // What speaks COPY does so the next time.
            retryable: retryable && error.kind != PqErrorKind::Copy,
            hint: hint.or(error.hint),
            sqlstate: error.sqlstate,
            detail: error.detail,
            position: error.position,
            column: error.column,
            constraint: error.constraint,
            blocked_by: None,
        })
    }
}

impl From<DieselError> for WorkError {
    fn from(error: DieselError) -> Self {
        let (detail, hint, position, column, constraint) = match &error {
            DieselError::DatabaseError(_, info) => (
                info.details().map(str::to_owned),
                info.hint().map(str::to_owned),
                info.statement_position().and_then(|p| u32::try_from(p).ok()),
                info.column_name().map(str::to_owned),
                info.constraint_name().map(str::to_owned),
            ),
            _ => (None, None, None, None, None),
        };
        let sqlstate = sqlstate_of(&error);
        let message = error.to_string();
        let (code, retryable) = code_of(sqlstate, DbError::from(error).is_unavailable());
        let hint = hint_at_limit(sqlstate, &message).map(str::to_owned).or(hint);
        WorkError::of(JobError {
            code: code.into(),
            message,
            retryable,
            sqlstate: sqlstate.map(str::to_owned),
            detail,
            hint,
            position,
            column,
            constraint,
            blocked_by: None,
        })
    }
}
