//! How attempts end, and what their ends become: the nouns. `finish` writes them.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::queue::model::{JobError, JobProgress, JobState, JobStatistics, RawJson};

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The job is over.
    Finished(Box<Finished>),
    /// It runs again later; the attempt is charged.
    Retry {
        /// Wait this long.
        delay: Duration,
        /// Why.
        error: JobError,
    },
    /// It asked to run again later; nothing is charged.
    Snooze {
        /// Wait this long.
        delay: Duration,
        /// Why, where that is worth telling.
        error: Option<JobError>,
    },
    /// It stopped because it was asked to pause, and can go on from where it was. Nothing is charged.
    Pause,
    /// It was interrupted through no fault of its own: claimable again at once, counted in `interruptions`. Where it is
    /// one too many in a row, the job ends as `poison` instead.
    HandBack {
        /// How.
        by: Interruption,
        /// Why.
        error: JobError,
    },
}

impl From<Finished> for Ending {
    fn from(finished: Finished) -> Ending {
        Ending::Finished(Box::new(finished))
    }
}

/// What an end became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// What it said.
    AsSaid,
    /// Its job was to be cancelled, and is.
    Cancelled,
    /// Its job was to be paused, and is, however the attempt ended.
    Paused,
    /// The interruption was one too many: its job ended as failed, `poison`.
    Poison,
}

/// The jobs whose lease was still held, and what the ends of their attempts became.
pub type Held = HashMap<Uuid, Became>;

/// The end of a job.
#[derive(Clone, Debug)]
pub struct Finished {
    /// `succeeded`, `failed` or `cancelled`.
    pub state: JobState,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What the kind returned.
    pub output: Option<RawJson>,
    /// Rows and bytes.
    pub statistics: JobStatistics,
    /// The last progress, so that it outlives its own table.
    pub progress: Option<JobProgress>,
    /// The result that becomes visible with this.
    pub result: Option<FinishedResult>,
    /// The interruption that ended it is counted too.
    pub interrupted: bool,
    /// The recorded transaction whose fate this end says. A job with another one isn't ended.
    pub settled: Option<String>,
}

/// A complete result, to be shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinishedResult {
    /// Rows in it.
    pub rows: i64,
    /// Uncompressed bytes.
    pub bytes: i64,
    /// It ends at a limit.
    pub truncated: bool,
    /// What its parts are.
    pub manifest: RawJson,
}

impl Finished {
    /// An end in `state` with nothing more to tell.
    pub fn plain(state: JobState) -> Finished {
        Finished {
            state,
            error: None,
            output: None,
            statistics: JobStatistics::default(),
            progress: None,
            result: None,
            interrupted: false,
            settled: None,
        }
    }

    /// The end of a job that failed.
    pub fn failed(error: JobError) -> Finished {
        Finished { error: Some(error), ..Finished::plain(JobState::Failed) }
    }
}

/// How an attempt was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The worker died: perhaps of the job.
    WorkerLost,
    /// The worker lives, or ended in order: it shut down, lost the queue, or lost sight of the job.
    HandedBack,
}
