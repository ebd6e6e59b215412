//! libpq sessions in an r2d2 pool.

use std::time::Duration;

use crate::db::error::DbError;
use crate::db::reach::Source;
pub use crate::db::vet::InBetween;
use crate::db::vet::{self, vet};
use crate::dsn::Dsn;
use crate::pq::{Patience, PqError, Session};

/// The oldest server that is supported, such as 140000.
pub const OLDEST_SERVER: i32 = vet::OLDEST_SERVER;

/// Looks for a pooler between a session by `dsn` and its server.
///
/// # Errors
/// When that can't be found out.
pub fn in_between(dsn: &Dsn, session: &mut Session) -> Result<InBetween, PqError> {
    vet::in_between(dsn, session)
}

/// How long an answer may take on a session that is opened by itself.
const ANSWER: Duration = Duration::from_secs(30);

/// A session outside any pool, with a server that was looked at first. It can only read.
///
/// # Errors
/// [`DbError::Unavailable`] with what to do about it, or what the server says.
pub fn open_alone(dsn: &Dsn, application_name: &str) -> Result<Session, DbError> {
    let source = Source::from(dsn).for_connecting().with("application_name", application_name);
    let unavailable = |error: PqError| DbError::Unavailable(error.message);
    vet(source.dsn()).map_err(unavailable)?;
    let mut session = Session::connect(source.dsn()).map_err(unavailable)?;
    session.allow(Patience::Each(ANSWER));
    session
        .execute_batch("SET default_transaction_read_only = on; SET lock_timeout = 2000; SET statement_timeout = 20000")
        .map_err(unavailable)?;
    Ok(session)
}

/// Opens sessions for a pool.
pub struct SessionManager {
    source: Source,
    limit: Duration,
}

impl SessionManager {
    /// Sessions with this database. One that doesn't answer within `limit` is given up, until it is told otherwise.
    pub fn new(source: Source, limit: Duration) -> SessionManager {
        SessionManager { source, limit }
    }
}

impl r2d2::ManageConnection for SessionManager {
    type Connection = Session;
    type Error = PqError;

    fn connect(&self) -> Result<Session, PqError> {
        let session = self.source.connect(Session::connect)?;
        session.allow(Patience::Each(self.limit));
        Ok(session)
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), PqError> {
        session.ping()
    }

    /// A session that isn't idle may hold locks, an open transaction or unread rows.
    fn has_broken(&self, session: &mut Session) -> bool {
        !session.is_idle()
    }
}
