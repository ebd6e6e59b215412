//! Connections on loan: each is as its login made it when a job gets it, or is closed.

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;

use crate::db::pool::Manager;
use crate::db::{DbError, line};
use crate::pq::{Patience, PqError, Session};
use crate::target::prologue::{self, Begun, OwnLimits};
use crate::target::sessions::SessionManager;
use crate::target::{HOUSEKEEPING, TargetBackend};

/// A connection on loan that is closed instead of returned when something was left behind on it.
pub struct Work<C> {
    /// The connection.
    pub inner: C,
    /// The server process behind it, once it was asked for: the same for as long as the connection lasts.
    pub(super) backend: Option<TargetBackend>,
    /// The server was a standby when it was last looked.
    pub on_standby: bool,
    /// The settings of the login, as they were when it was opened: known by a digest.
    login: i64,
    /// What the login is limited to, whatever a job asks for.
    pub limits: OwnLimits,
    /// It isn't as it was: a cancel may still be in flight, or its reset failed.
    pub tainted: bool,
}

impl<C> Work<C> {
    /// Notes what is known of the session as it begins. `false` when it isn't as a login of this moment would be: settings
    /// of the role or the database have changed since it was opened.
    pub(super) fn begin(&mut self, begun: &Begun) -> bool {
        self.limits = begun.limits;
        self.login == begun.login
    }
}

/// Opens connections for jobs.
pub trait Opens: r2d2::ManageConnection {
    /// A digest of the settings of the login, as they are now.
    ///
    /// # Errors
    /// When the server can't be asked.
    fn login(connection: &mut Self::Connection) -> Result<i64, Self::Error>;
}

impl Opens for Manager {
    fn login(connection: &mut PgConnection) -> Result<i64, DbError> {
        Ok(prologue::login_of_diesel(connection)?)
    }
}

impl Opens for SessionManager {
    fn login(session: &mut Session) -> Result<i64, PqError> {
        prologue::login_of_session(session)
    }
}

/// Hands out [`Work`] connections of another manager.
pub struct WorkManager<M>(pub(super) M);

impl<M: Opens> r2d2::ManageConnection for WorkManager<M> {
    type Connection = Work<M::Connection>;
    type Error = M::Error;

    fn connect(&self) -> Result<Self::Connection, M::Error> {
        let mut inner = self.0.connect()?;
        // At once: it may lie in the pool until long after the login's settings have changed.
        let login = M::login(&mut inner)?;
        Ok(Work { inner, backend: None, on_standby: false, login, limits: OwnLimits::default(), tainted: false })
    }

    fn is_valid(&self, connection: &mut Self::Connection) -> Result<(), M::Error> {
        self.0.is_valid(&mut connection.inner)
    }

    fn has_broken(&self, connection: &mut Self::Connection) -> bool {
        connection.tainted || self.0.has_broken(&mut connection.inner)
    }
}

/// A Diesel connection on loan for a job.
pub type DieselLoan = r2d2::PooledConnection<WorkManager<Manager>>;

/// A libpq session on loan for a job.
pub type SessionLoan = r2d2::PooledConnection<WorkManager<SessionManager>>;

/// Makes a loan fit for the next job: everything that the last one set, locked, created or prepared goes.
pub fn reset_diesel(loan: &mut DieselLoan) {
    let watched = line::allow(&mut loan.inner, Patience::Each(HOUSEKEEPING));
    if !watched || loan.inner.batch_execute("DISCARD ALL").is_err() {
        loan.tainted = true;
    }
}

/// As [`reset_diesel`], for a libpq session. One that isn't idle is closed instead.
pub fn reset_session(loan: &mut SessionLoan) {
    loan.inner.allow(Patience::Each(HOUSEKEEPING));
    if !loan.inner.is_idle() || loan.inner.execute_batch("DISCARD ALL").is_err() {
        loan.tainted = true;
    }
}
