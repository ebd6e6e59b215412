//! What an attempt leaves behind for its end: counts, results, and what it may have done.

use crate::queue::lifecycle::end::FinishedResult;
use crate::queue::model::JobStatistics;

/// What is left of an attempt when its work has returned.
pub struct LeftBehind {
    /// Rows and bytes.
    pub statistics: JobStatistics,
    /// The result that becomes visible when the job succeeds.
    pub result: Option<FinishedResult>,
    /// The result that becomes visible when the job fails with the error that the work returned.
    pub result_of_failure: Option<FinishedResult>,
    /// What it may have done.
    pub effects: Effects,
    /// How far its transaction came.
    pub commit: CommitState,
    /// It worked on a standby.
    pub on_standby: bool,
}

/// What an attempt may have done, beside the transaction that it recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effects {
    /// Its kind was not reached.
    #[default]
    NotBegun,
    /// All of it was rolled back, and the server said so.
    None,
    /// Something may have taken effect.
    Possible,
    /// Something may have taken effect that nobody can find out: even a kind that may be repeated isn't.
    NotRepeatable,
}

impl Effects {
    /// Whether a kind that may not be repeated can run again.
    pub fn are_possible(self) -> bool {
        matches!(self, Effects::Possible | Effects::NotRepeatable)
    }
}

/// How far the last transaction has come that was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CommitState {
    /// None was recorded.
    #[default]
    None,
    /// This one was recorded, or may have been, and may have been committed.
    InDoubt(String),
    /// It was recorded, and the server said that it was rolled back.
    RolledBack(String),
    /// It is committed, and stays so. The work goes on.
    Advanced(String),
    /// It is committed as the end of the job, and stays so.
    Committed(String),
}
