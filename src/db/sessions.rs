//! libpq sessions in an r2d2 pool.

use std::time::Duration;

use crate::db::reach::Source;
use crate::pq::{Patience, PqError, Session};

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
