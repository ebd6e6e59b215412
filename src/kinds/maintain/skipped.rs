//! What a step left out, found by looking at what there was before it and what there is behind it.
//!
//! The server says that it skipped something by a warning in its own language, mostly under the SQLSTATE of every other
//! warning, and of a partition that is locked it says nothing at all. What was done shows elsewhere: a rebuilt index and a
//! rewritten table are in another file, a VACUUM and an ANALYZE are counted in the table's statistics.

use serde::Serialize;

use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::context::{Warning, Warnings, WorkContext};

/// The most that a job's output names.
const NAMED: usize = 100;
/// The most that an error names.
const NAMED_IN_ERROR: usize = 3;
/// SQLSTATE `lock_not_available`.
pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// SQLSTATE `feature_not_supported`.
pub(super) const NOT_SUPPORTED: &str = "0A000";
/// SQLSTATE `object_not_in_prerequisite_state`.
pub(super) const NOT_IN_STATE: &str = "55000";
/// SQLSTATE `insufficient_privilege`.
pub(super) const NOT_ALLOWED: &str = "42501";
/// SQLSTATE `wrong_object_type`.
pub(super) const WRONG_TYPE: &str = "42809";

/// A table, a partition or an index that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its name, with its schema, quoted where SQL needs it.
    pub what: String,
    /// Why it was left out.
    pub reason: String,
    /// The reason as a SQLSTATE, the same on each version of the server: `42501` the role may not, `55P03` it is locked, `0A000` it
    /// can't be done, `55000` the index is invalid, `42809` it is no such table. `null` where the server gave no reason.
    pub sqlstate: Option<String>,
}

impl Skipped {
    pub(super) fn new(what: &str, reason: impl Into<String>, sqlstate: &str) -> Skipped {
        let sqlstate = Some(sqlstate.to_owned());
        Skipped { what: what.to_owned(), reason: reason.into(), sqlstate }
    }

    /// For a reason that only the server knows: by its warning that has the bare name in it.
    pub(super) fn as_warned(what: &str, bare: &str, warnings: &Warnings) -> Skipped {
        match warnings.kept.iter().find(|warning| warning.message.contains(bare)) {
            Some(warning) => Skipped::new(what, &warning.message, &warning.sqlstate),
            None => Skipped {
                what: what.to_owned(),
                reason: "the server left it out, and gave no reason".to_owned(),
                sqlstate: None,
            },
        }
    }
}

/// What a step did, and what it left out.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How many tables or indexes were done.
    pub done: u64,
    pub skipped: Vec<Skipped>,
}

impl Outcome {
    pub fn did(&mut self) {
        self.done = self.done.saturating_add(1);
    }

    /// Tells of what was left out in the job's log. When it is all that was asked for, the job has failed.
    pub fn told(
        mut self,
        ctx: &WorkContext<'_>,
        warnings: Warnings,
        hint: impl Fn(&Skipped) -> String,
    ) -> Result<Told, WorkError> {
        for skipped in self.skipped.iter().take(NAMED) {
            ctx.log(LogLevel::Warning, &format!("{} was left out: {}", skipped.what, skipped.reason));
        }
        if let (0, Some(first)) = (self.done, self.skipped.first()) {
            return Err(WorkError::of(all_skipped(&self.skipped).with_hint(hint(first))));
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let skipped_count = count(self.skipped.len());
        self.skipped.truncate(NAMED);
        Ok(Told { done: self.done, skipped: self.skipped, skipped_count, warnings: warnings.shown() })
    }
}

/// As [`Outcome`], in the job's output.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub done: u64,
    pub skipped: Vec<Skipped>,
    pub skipped_count: u64,
    pub warnings: Vec<Warning>,
}

/// Locks go by; nothing else does.
fn all_skipped(skipped: &[Skipped]) -> JobError {
    let mut named: Vec<String> =
        skipped.iter().take(NAMED_IN_ERROR).map(|skipped| format!("{}: {}", skipped.what, skipped.reason)).collect();
    match skipped.len().saturating_sub(NAMED_IN_ERROR) {
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    let message = format!("the server left out all that was asked for: {}", named.join("; "));
    let error = JobError::new(ErrorCode::AllSkipped, message);
    let locked = skipped.iter().all(|skipped| skipped.sqlstate.as_deref() == Some(LOCK_NOT_AVAILABLE));
    let error = if locked { error.retryable() } else { error };
    JobError { sqlstate: skipped.first().and_then(|skipped| skipped.sqlstate.clone()), ..error }
}
