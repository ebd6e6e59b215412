//! Sessions in an r2d2 pool.

use crate::dsn::Dsn;
use crate::pq::error::PqError;
use crate::pq::session::Session;

/// Opens sessions for a pool.
pub struct SessionManager {
    dsn: Dsn,
}

impl SessionManager {
    /// Sessions by this string.
    pub fn new(dsn: Dsn) -> SessionManager {
        SessionManager { dsn }
    }
}

impl r2d2::ManageConnection for SessionManager {
    type Connection = Session;
    type Error = PqError;

    fn connect(&self) -> Result<Session, PqError> {
        Session::connect(&self.dsn)
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), PqError> {
        session.execute_batch("SELECT 1")
    }

    /// A session that isn't idle may hold locks, an open transaction or unread rows.
    fn has_broken(&self, session: &mut Session) -> bool {
        !session.is_idle()
    }
}
