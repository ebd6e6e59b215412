//! What can go wrong on a queue connection, in the few classes that its callers treat differently.
//!
//! Knows neither HTTP nor the queue. Never holds a connection string.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// A failed use of the queue's database.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection or no answer within the time that the caller can wait: try again shortly.
    #[error("the database is busy: {0}")]
    Busy(&'static str),
    /// The database can't be reached, or went away during the statement.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The statement was refused; trying again would be refused again.
    #[error("the database refused a statement: {0}")]
    Query(#[source] DieselError),
}

impl DbError {
    /// The connection (and with it the outcome of an open COMMIT) is lost.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, DbError::Unavailable(_))
    }

    /// The server has no room left on a disk (SQLSTATE 53100, which Diesel doesn't pass on).
    pub fn is_disk_full(&self) -> bool {
        match self {
            DbError::Query(DieselError::DatabaseError(_, info)) => {
                ["No space left on device", "could not extend file", "could not write to file"]
                    .iter()
                    .any(|words| info.message().contains(words))
            }
            _ => false,
        }
    }

    /// A refusal that says nothing about the statement itself: a server that is read-only for a while, a full disk, a
    /// deadlock, a statement that somebody cancelled.
    pub fn passes(&self) -> bool {
        if self.is_disk_full() {
            return true;
        }
        let DbError::Query(DieselError::DatabaseError(kind, info)) = self else { return false };
        let words = ["deadlock detected", "out of memory", "canceling statement"];
        matches!(kind, DatabaseErrorKind::ReadOnlyTransaction | DatabaseErrorKind::SerializationFailure)
            || words.iter().any(|word| info.message().contains(word))
    }

    /// The row was refused because no partition holds its id (SQLSTATE 23514, which Diesel reports as a check
    /// violation without a constraint name).
    pub fn is_missing_partition(&self) -> bool {
        match self {
            DbError::Query(DieselError::DatabaseError(DatabaseErrorKind::CheckViolation, info)) => {
                info.constraint_name().is_none()
            }
            _ => false,
        }
    }
}

impl From<DieselError> for DbError {
    fn from(error: DieselError) -> Self {
        match &error {
            // A prepared statement on a connection that is gone can't even be sent, and has no words of the server's.
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                info,
            ) => DbError::Unavailable(info.message().to_owned()),
            DieselError::DatabaseError(_, info) if is_loss(info.message()) => {
                DbError::Unavailable(info.message().to_owned())
            }
            DieselError::DatabaseError(_, info) if is_timeout(info.message()) => DbError::Busy("a statement timed out"),
            DieselError::BrokenTransactionManager => {
                DbError::Unavailable("the connection was lost within a transaction".to_owned())
            }
            DieselError::RollbackErrorOnCommit { commit_error, .. } => match commit_error.as_ref() {
                DieselError::DatabaseError(_, info) => DbError::Unavailable(info.message().to_owned()),
                _ => DbError::Query(error),
            },
            _ => DbError::Query(error),
        }
    }
}

/// The connection is gone, as far as an error of Diesel's shows it.
pub(crate) fn tells_of_loss(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand, _)
        | DieselError::BrokenTransactionManager => true,
        DieselError::DatabaseError(_, info) => is_loss(info.message()),
        _ => false,
    }
}

/// libpq's and the server's words for a session that is gone. Diesel passes no SQLSTATE on, and classifies only
/// one of them as a closed connection.
fn is_loss(message: &str) -> bool {
    const WORDS: [&str; 12] = [
        "server closed the connection",
        "terminating connection",
        "no connection to the server",
        "connection to server",
        "connection not open",
        "could not receive data",
        "could not send data",
        "connection has been closed",
        "connection timed out",
        "the database system is",
        "lost synchronization",
        "SSL error",
    ];
    WORDS.iter().any(|word| message.contains(word))
}

fn is_timeout(message: &str) -> bool {
    message.contains("statement timeout") || message.contains("lock timeout")
}
