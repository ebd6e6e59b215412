//! What an attempt asks of its sessions, and how long their statements may take and wait: by the job, its saved
//! statement, the target, and the target's own login.

use std::time::Duration;

use crate::queue::{ErrorCode, JobError};
use crate::statements::Statement;
use crate::target::prologue::refuses_time_zone;
use crate::target::{LOCK_TIMEOUT, OwnLimits, SessionAsks};
use crate::work::WorkError;
use crate::work::context::WorkContext;

/// A wait for a lock that may end sooner is looked at out of turn.
const REGULAR_LOOK: Duration = Duration::from_secs(1);

impl WorkContext<'_> {
    /// What a saved statement says of its sessions, where its caller says nothing.
    pub(crate) fn use_settings_of(&self, statement: &Statement) {
        let lock_timeout = statement.lock_timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        *self.of_statement.borrow_mut() = SessionAsks { time_zone: statement.time_zone.clone(), lock_timeout };
    }

    /// What the job asks of its sessions.
    pub(super) fn asks(&self) -> SessionAsks {
        let lock_timeout =
            self.job.spec.lock_timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let of_statement = self.of_statement.borrow();
        SessionAsks {
            time_zone: self.job.spec.time_zone.clone().or_else(|| of_statement.time_zone.clone()),
            lock_timeout: lock_timeout.or(of_statement.lock_timeout),
        }
    }

    /// The job's time zone is why a session could not be set up.
    pub(super) fn not_lent(&self, sqlstate: Option<&str>, message: &str) -> Option<WorkError> {
        let zone = self.asks().time_zone.filter(|_| refuses_time_zone(sqlstate, message))?;
        Some(unknown_time_zone(&zone))
    }

    /// Where the time zone that it asks for was written, as a JSON pointer from the job.
    pub(crate) fn time_zone_pointer(&self) -> &'static str {
        if self.job.spec.time_zone.is_some() { "/time_zone" } else { "/args/name" }
    }

    /// A session was lent: what its login is limited to is known by now.
    pub(super) fn limited(&self, limits: OwnLimits) {
        self.said.waits().begin(limits);
        self.waits_for_locks(limits.waits_for_locks);
    }

    /// A statement may take `wanted`, or less where the target's login allows less: in milliseconds, as
    /// `statement_timeout` takes it.
    pub(crate) fn statement_ms(&self, wanted: Duration) -> u64 {
        self.said.waits().own().statement_ms(wanted)
    }

    /// As [`WorkContext::statement_ms`], of all that is left of the attempt's time.
    pub(crate) fn statement_ms_left(&self) -> u64 {
        self.statement_ms(self.remaining())
    }

    /// A statement may wait for a lock for `wanted`, or less where the target's login allows less: in milliseconds, as
    /// `lock_timeout` takes it, where 0 is no limit.
    pub(crate) fn lock_ms(&self, wanted: Option<Duration>) -> u64 {
        self.said.waits().own().lock_ms(wanted)
    }

    /// How long a statement waits for a lock by the job, its target and the login.
    pub(crate) fn lock_timeout(&self) -> Duration {
        self.said.waits().own().waits_for_locks.unwrap_or(LOCK_TIMEOUT)
    }

    /// From now on a statement of the attempt waits for locks so long: known so that the error can name who had them.
    pub(crate) fn waits_for_locks(&self, limit: Option<Duration>) {
        if self.said.waits().limit(limit) {
            self.hurry();
        }
    }

    /// What has waited for a lock in vain is tried again now.
    pub(crate) fn waits_again(&self) {
        self.said.waits().again();
        self.hurry();
    }

    /// Has whoever looks at sessions come early, where the next regular look would be too late.
    fn hurry(&self) {
        let early = self.said.waits().early_look();
        if early.is_some_and(|pause| pause < REGULAR_LOOK) {
            self.services.looks.hurry();
        }
    }
}

/// A target's server doesn't know a time zone that a job or a saved statement names.
pub fn unknown_time_zone(zone: &str) -> WorkError {
    let message = format!("time_zone: the target's server knows no time zone {zone}");
    let error = JobError::new(ErrorCode::UnknownTimeZone, message);
    WorkError::Fail(error.with_hint("SELECT name FROM pg_timezone_names lists those that it knows"))
}
