//! What a worker adds to the error of an attempt: who held the lock that it waited for in vain, and that a limit of the
//! target's own login ended a statement.

use std::time::Duration;

use crate::queue::model::BlockedBy;
use crate::queue::record::log::{LogLevel, LogSource};
use crate::queue::{ErrorCode, JobError};
use crate::work::{QUERY_CANCELED, WorkError};
use crate::worker::running::Attempt;

/// The server's own timer and ours may be this far apart.
pub(super) const TIMER_SLACK: Duration = Duration::from_millis(250);

/// Adds to the error what is known beside it.
pub(super) fn explain<T>(attempt: &Attempt, outcome: &mut Result<T, WorkError>) {
    let Err(failed) = outcome else { return };
    let (WorkError::Retry(error) | WorkError::Fail(error)) = failed else { return };
    if error.code == ErrorCode::LockTimeout {
        name_own_lock_timeout(attempt, error);
        name_blockers(attempt, error);
    }
    if error.sqlstate.as_deref() == Some(QUERY_CANCELED)
        && let Some(error) = of_own_statement_timeout(attempt, error)
    {
        *failed = WorkError::of(error);
    }
}

/// The login's own `lock_timeout` is what was waited for, if the server ended the wait.
fn name_own_lock_timeout(attempt: &Attempt, error: &mut JobError) {
    let waits = attempt.said.waits();
    let Some(own) = waits.own().lock_timeout.filter(|own| waits.limit_now() == Some(*own)) else { return };
    drop(waits);
    // One that asked for no wait.
    if error.message.contains("could not obtain lock") {
        return;
    }
    let message =
        format!("{}: the lock_timeout of the target's own login, {} ms, is over", error.message, own.as_millis());
    let hint = "raise it where it is set (ALTER ROLE … SET lock_timeout, the database or the connection string): \
                lock_timeout_ms of a job can only be shorter";
    *error = JobError { message, ..error.clone() }.with_hint(hint).bounded();
}

fn name_blockers(attempt: &Attempt, error: &mut JobError) {
    let Some(blockers) = attempt.said.waits().blockers() else { return };
    let blockers: Vec<BlockedBy> = blockers.into_iter().map(BlockedBy::from).collect();
    let names = blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let told = format!("a lock was waited for in vain, held or waited for before by {names}");
    attempt.said.log().say(LogLevel::Warning, LogSource::Work, error.sqlstate.clone(), &told);
    error.blocked_by = Some(blockers);
}

/// A statement that the login's own `statement_timeout` has ended, before the attempt's time was over and without anybody
/// having asked for it. It would take as long the next time.
fn of_own_statement_timeout(attempt: &Attempt, error: &JobError) -> Option<JobError> {
    let own = attempt.said.waits().own().statement_timeout?;
    let asked = attempt.control.stop_reason().is_some() || attempt.control.remaining() <= TIMER_SLACK;
    if asked || attempt.said.progress().age().saturating_add(TIMER_SLACK) < own || is_by_hand(&error.message) {
        return None;
    }
    let (own, job) = (own.as_millis(), attempt.job.spec.timeout_ms);
    let message = format!(
        "{}: the statement_timeout of the target's own login, {own} ms, is shorter than the job's timeout_ms = {job}",
        error.message
    );
    let hint = "raise it where it is set (ALTER ROLE … SET statement_timeout, the database or the connection string), or \
                have the statement do less";
    Some(JobError { message, retryable: false, ..error.clone() }.with_hint(hint).bounded())
}

/// Somebody cancelled the statement, as far as the server's words are understood.
fn is_by_hand(message: &str) -> bool {
    message.contains("canceling statement") && !message.contains("statement timeout")
}
