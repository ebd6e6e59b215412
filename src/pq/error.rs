//! What can go wrong with a session, in our words, and with the server's fields.

use crate::dsn::Dsn;

/// Which side failed, and how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PqErrorKind {
    /// No session came about.
    Connect,
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
}

impl PqError {
    pub(crate) fn of(kind: PqErrorKind, message: impl Into<String>) -> PqError {
        PqError { kind, sqlstate: None, message: message.into(), detail: None, hint: None, position: None }
    }

    /// A session that is gone, or couldn't be had.
    pub fn connection_lost(message: &str) -> PqError {
        PqError::of(PqErrorKind::ConnectionLost, message)
    }

    /// The same statement may well succeed on another try: lost connections, a server that starts or stops, no free
    /// slot, serialization failures, deadlocks, locks that were held too long.
    pub fn retryable(&self) -> bool {
        match (&self.kind, self.sqlstate.as_deref()) {
            (PqErrorKind::Copy | PqErrorKind::Usage, _) => false,
            (_, Some(state)) => {
                let states = ["40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57P05", "53300"];
                states.contains(&state) || state.starts_with("08")
            }
            (PqErrorKind::Connect | PqErrorKind::ConnectionLost, None) => true,
            (PqErrorKind::Server, None) => false,
        }
    }
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
}

/// Says in fixed words why a connection could not be opened. libpq's own text is only looked at, never repeated.
pub fn explain_connect_failure(dsn: &Dsn, raw: &str) -> String {
    const CLASSES: [(&str, &str); 20] = [
        ("password authentication failed", "the server refused the password"),
        ("no password supplied", "the server asks for a password, and there is none"),
        ("no pg_hba.conf entry", "the server's pg_hba.conf has no entry that lets this user in from here"),
        ("certificate verify failed", "the server's certificate is not trusted"),
        ("root certificate file", "the file with trusted certificates (sslrootcert) can't be read"),
        ("server does not support SSL", "the server has no TLS, and sslmode asks for it"),
        ("too many clients", "the server has no free connection slot"),
        ("remaining connection slots", "the server has no free connection slot"),
        ("too many connections", "the role or the database has no free connection slot"),
        ("is starting up", "the server is starting up"),
        ("is shutting down", "the server is shutting down"),
        ("in recovery mode", "the server is in recovery"),
        ("role \"", "the server has no such role, or it may not log in"),
        ("database \"", "the server has no such database, or it may not be connected to"),
        ("could not translate host name", "the host name can't be resolved"),
        ("Connection refused", "nobody listens there: the connection was refused"),
        ("No such file or directory", "no server listens on that socket"),
        ("timeout expired", "no answer came within connect_timeout"),
        ("server closed the connection", "the server closed the connection at once"),
        ("authentication", "the server refused the authentication"),
    ];
    let known = CLASSES.iter().find(|(words, _)| raw.contains(words)).map(|(_, text)| *text);
    format!("could not connect to {}: {}", dsn.masked(), known.unwrap_or("connecting failed"))
}
