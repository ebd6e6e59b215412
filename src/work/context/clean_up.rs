//! What an attempt may still do on its target when it is to end.

use std::time::Instant;

use crate::pq::Session;
use crate::queue::lifecycle::claim::Noted;
use crate::queue::{ErrorCode, JobError};
use crate::target::reset_session;
use crate::work::WorkError;
use crate::work::context::WorkContext;
use crate::work::control::StopReason;

impl WorkContext<'_> {
    /// Does what must not be left undone when an attempt ends, also one that is to end, or whose session is lost. The
    /// session is one that no cancel reaches; the attempt's others are ended before, so they have to be dropped. `work`
    /// is given the time at which it has to be done: [`CLEAN_UP_WITHIN`](crate::work::control::CLEAN_UP_WITHIN) after
    /// the attempt was asked to end, or from now.
    ///
    /// # Errors
    /// The work's own; when no session can be had in time; [`WorkError::Cancelled`] when the lease is lost, or may be:
    /// what is left is the next attempt's then.
    pub fn clean_up<T>(
        &self,
        work: impl FnOnce(&mut Session, Instant) -> Result<T, WorkError>,
    ) -> Result<T, WorkError> {
        let until = self.control.clean_up_until();
        if matches!(self.control.stop_reason(), Some(StopReason::QueueLost | StopReason::LeaseLost)) {
            return Err(WorkError::Cancelled);
        }
        let name = self.lease().application_name();
        let unavailable = |error: &dyn std::fmt::Display| {
            WorkError::Retry(JobError::new(ErrorCode::TargetUnavailable, error.to_string()).retryable())
        };
        let others = self.control.sessions();
        if !others.is_empty() {
            self.target.end_sessions(&name, &others).map_err(|error| unavailable(&error))?;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unavailable(&"there was no time left for it"));
        }
        let (mut loan, backend) =
            self.target.session(&name, left, &self.asks()).map_err(|error| unavailable(&error))?;
        if self.noted(&backend)? == Noted::LeaseLost {
            return Err(WorkError::Cancelled);
        }
        let outcome = work(&mut loan.inner, until);
        reset_session(&mut loan);
        outcome
    }
}
