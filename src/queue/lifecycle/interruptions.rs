//! Attempts that are interrupted through no fault of their own, and how many of them in a row a job may have.
//!
//! A worker that dies may have died of the job: three in a row, and the job ends as `poison`. An orderly shutdown is nobody's
//! fault, and counts only towards a bound that keeps a job from being begun for ever. Both counts begin anew when the work
//! got further, or when an attempt ended by itself (an error that is tried again, a snooze). A pause, and a target that is
//! away, say nothing either way. The counts are columns of `jobs`; `queue/lifecycle/finish.rs` keeps them.

use crate::queue::lifecycle::end::{Ending, Finished, Interruption};
use crate::queue::model::ErrorCode;
use crate::queue::model::{JobError, MAX_INTERRUPTED_IN_A_ROW, MAX_LOST_IN_A_ROW};

/// Interruptions in a row, before the one that is being counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InARow {
    /// Workers that died.
    pub lost: i32,
    /// Of every kind.
    pub interrupted: i32,
    /// The work got further since: the counts are of the past.
    pub moved: bool,
}

impl InARow {
    /// Why the job ends here, should this interruption be one too many.
    pub(super) fn poison(self, by: Interruption, why: &str) -> Option<JobError> {
        let before = if self.moved { InARow::default() } else { self };
        let lost = before.lost.saturating_add(i32::from(by == Interruption::WorkerLost));
        if lost >= MAX_LOST_IN_A_ROW {
            let message = format!("{lost} workers in a row died while they ran it");
            let hint =
                "it may be what ends the process that runs it: see what that process logged last, and its memory";
            return Some(JobError::new(ErrorCode::Poison, message).with_hint(hint));
        }
        let interrupted = before.interrupted.saturating_add(1);
        (interrupted >= MAX_INTERRUPTED_IN_A_ROW).then(|| {
            let message = format!("interrupted {interrupted} times in a row, the last time because {why}");
            let hint = "it needs longer than its workers live: make it shorter, raise shutdown_grace, or have it keep a \
                        checkpoint";
            JobError::new(ErrorCode::Poison, message).with_hint(hint)
        })
    }
}

/// The end of an attempt that was interrupted: handed back, unless it is one too many, which is seen where it is written.
/// One that may not be repeated ends as `outcome_unknown`.
pub fn interrupted(by: Interruption, repeatable: bool, why: &str) -> Ending {
    if !repeatable {
        return Ending::from(failed(outcome_unknown(why)));
    }
    Ending::HandBack { by, error: JobError::new(ErrorCode::Interrupted, why).retryable() }
}

/// The error of an attempt that may have taken effect and may not be repeated.
pub fn outcome_unknown(why: &str) -> JobError {
    JobError::new(ErrorCode::OutcomeUnknown, format!("{why}, and nobody knows whether its work took effect"))
        .with_hint("look at the target before you submit it again")
}

/// The end of a job by an interruption.
pub(super) fn failed(error: JobError) -> Finished {
    Finished { interrupted: true, ..Finished::failed(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_a_row(lost: i32, interrupted: i32, moved: bool) -> InARow {
        InARow { lost, interrupted, moved }
    }

    #[test]
    fn workers_that_died_count_and_orderly_ends_hardly() {
        use Interruption::{HandedBack, WorkerLost};
        for (before, by, poison) in [
            (in_a_row(0, 0, false), WorkerLost, false),
            (in_a_row(1, 1, false), WorkerLost, false),
            (in_a_row(2, 2, false), WorkerLost, true),
            (in_a_row(2, 2, false), HandedBack, false),
            (in_a_row(2, 3, false), WorkerLost, true),
            (in_a_row(0, 18, false), HandedBack, false),
            (in_a_row(0, 19, false), HandedBack, true),
            (in_a_row(1, 19, false), WorkerLost, true),
            (in_a_row(2, 19, true), WorkerLost, false),
            (in_a_row(i32::MAX, i32::MAX, true), HandedBack, false),
        ] {
            assert_eq!(before.poison(by, "x").is_some(), poison, "{before:?} {by:?}");
        }
    }
}
