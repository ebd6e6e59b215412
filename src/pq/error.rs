//! What can go wrong with a session, in our words, and with the server's fields.

use crate::dsn::Dsn;
use crate::pq::failure::ConnectFailure;

/// Which side failed, and how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PqErrorKind {
    /// No session came about, for this reason.
    Connect(ConnectFailure),
    /// The session is gone.
    ConnectionLost,
    /// The server refused or stopped a statement; the fields are its own.
    Server,
    /// The statement speaks COPY, which a session doesn't: it must be closed.
    Copy,
    /// The session was used in a way that can't work.
    Usage,
}

/// A failed use of a session.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PqError {
    /// Which side failed.
    pub kind: PqErrorKind,
    /// The server's SQLSTATE.
    pub sqlstate: Option<String>,
    /// What happened.
    pub message: String,
    /// The server's DETAIL.
    pub detail: Option<String>,
    /// The server's HINT.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<u32>,
    /// The server's CONTEXT: what it was doing, such as a line of a COPY.
    pub context: Option<String>,
    /// The schema of the table that the server names, where it names one.
    pub schema: Option<String>,
    /// The table that the server names.
    pub table: Option<String>,
    /// The column of that table that the server names, such as one that may not be NULL.
    pub column: Option<String>,
    /// The constraint that the server names.
    pub constraint: Option<String>,
}

impl PqError {
    pub(crate) fn of(kind: PqErrorKind, message: impl Into<String>) -> PqError {
        PqError {
            kind,
            sqlstate: None,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            context: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }
    }

    /// A session by `dsn` that can't be had, for this reason.
    pub(crate) fn refused(failure: ConnectFailure, dsn: &Dsn) -> PqError {
        PqError::of(PqErrorKind::Connect(failure), failure.explain(dsn))
    }

    /// A session that is gone, or couldn't be had.
    pub fn connection_lost(message: &str) -> PqError {
        PqError::of(PqErrorKind::ConnectionLost, message)
    }

    /// An answer that came, and that nothing can be done with.
    pub fn unreadable(message: &str) -> PqError {
        PqError::of(PqErrorKind::Usage, message)
    }

    /// The same statement may well succeed on another try: lost connections, a server that starts or stops, no free
    /// slot, serialization failures, deadlocks, locks that were held too long. A transaction that was longer than it
    /// may be is as long the next time.
    pub fn retryable(&self) -> bool {
        match (&self.kind, self.sqlstate.as_deref()) {
            (PqErrorKind::Copy | PqErrorKind::Usage, _) => false,
            (_, Some(state)) => is_worth_another_try(state),
            (PqErrorKind::Connect(_) | PqErrorKind::ConnectionLost, None) => true,
            (PqErrorKind::Server, None) => false,
        }
    }
}

/// What failed with this SQLSTATE may well succeed on another try: see [`PqError::retryable`].
pub fn is_worth_another_try(sqlstate: &str) -> bool {
    let states = ["25P03", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57P05", "53300"];
    states.contains(&sqlstate) || sqlstate.starts_with("08")
}

/// A message that the server sent beside a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE`, `WARNING` and so on.
    pub severity: String,
    /// Its SQLSTATE.
    pub sqlstate: String,
    /// What it says.
    pub message: String,
    /// The function of the server's source that says it.
    pub function: String,
    /// The line of the server's source: the same for the same message of one server.
    pub line: String,
}

impl Notice {
    /// It is a warning, in whatever language the server speaks.
    pub fn is_warning(&self) -> bool {
        self.sqlstate.starts_with("01")
    }
}
