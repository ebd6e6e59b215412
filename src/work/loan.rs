//! Sessions that are lent to an attempt: given back fit for the next job or closed, and how each is stopped.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use diesel::pg::PgConnection;

use crate::pq::{Canceller, Session};
use crate::target::{DieselLoan, SessionLoan, Target, TargetBackend, reset_diesel, reset_session};
use crate::work::control::{Interrupt, JobControl};

/// A Diesel connection on loan. Dereferences to [`PgConnection`].
pub struct DieselWork<'c> {
    pub(super) loan: DieselLoan,
    pub(super) control: &'c JobControl,
    pub(super) handle: u64,
}

impl Deref for DieselWork<'_> {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.loan.inner
    }
}

impl DerefMut for DieselWork<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.loan.inner
    }
}

impl Drop for DieselWork<'_> {
    fn drop(&mut self) {
        if self.control.disarm(self.handle) {
            self.loan.tainted = true;
        } else {
            reset_diesel(&mut self.loan);
        }
        if !self.loan.tainted {
            self.control.given_back(self.handle);
        }
    }
}

/// A libpq session on loan. Dereferences to [`Session`].
pub struct SessionWork<'c> {
    pub(super) loan: SessionLoan,
    pub(super) control: &'c JobControl,
    pub(super) handle: u64,
    pub(super) own: Canceller,
}

impl SessionWork<'_> {
    /// The session, its canceller, and the mark that has it closed, each on its own.
    pub fn split(&mut self) -> (&mut Session, &mut Canceller, &mut bool) {
        let work = &mut *self.loan;
        (&mut work.inner, &mut self.own, &mut work.tainted)
    }
}

impl Deref for SessionWork<'_> {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.loan.inner
    }
}

impl DerefMut for SessionWork<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.loan.inner
    }
}

impl Drop for SessionWork<'_> {
    fn drop(&mut self) {
        self.loan.inner.on_notice(None);
        self.control.cancelled_by_server(self.loan.inner.take_cancelled());
        if self.control.disarm(self.handle) {
            self.loan.tainted = true;
        } else if !self.loan.tainted {
            reset_session(&mut self.loan);
        }
        if !self.loan.tainted {
            self.control.given_back(self.handle);
        }
    }
}

/// Stops a session from another one of the same role: Diesel hands out no key for libpq's own way.
pub(super) struct ByBackend {
    target: Arc<Target>,
    backend: TargetBackend,
    name: String,
    /// Pressed ten times a second, it complains once.
    complained: bool,
}

impl ByBackend {
    /// Stops `backend` for as long as it carries `name`.
    pub fn new(target: &Arc<Target>, backend: &TargetBackend, name: String) -> ByBackend {
        ByBackend { target: Arc::clone(target), backend: backend.clone(), name, complained: false }
    }

    fn complain(&mut self, what: &str, error: &dyn std::fmt::Display) {
        let level = if std::mem::replace(&mut self.complained, true) { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, session = self.name.as_str(); "{what}, and is tried again: {error}");
    }
}

impl Interrupt for ByBackend {
    fn cancel(&mut self) {
        if let Err(error) = self.target.cancel_backend(&self.backend, &self.name) {
            self.complain("a statement could not be cancelled", &error);
        }
    }

    fn terminate(&mut self) {
        if let Err(error) = self.target.terminate_backend(&self.backend, &self.name) {
            self.complain("a session could not be ended", &error);
        }
    }
}

/// Stops a session through libpq: no further slot and no privilege is needed.
pub(super) struct ByCanceller {
    pub canceller: Canceller,
    pub by_backend: ByBackend,
}

impl Interrupt for ByCanceller {
    fn cancel(&mut self) {
        if let Err(error) = self.canceller.cancel() {
            self.by_backend.complain("a statement could not be cancelled", &error);
        }
    }

    fn terminate(&mut self) {
        self.by_backend.terminate();
    }
}
