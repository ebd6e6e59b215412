//! A job as it is stored, and the words for where it is in its life.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::queue::model::BlockedBy;
use crate::queue::model::{JobSpec, RawJson};

/// A job as it is stored, finished or not.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's id: a UUIDv7.
    pub id: Uuid,
    /// What its caller asked for.
    pub spec: JobSpec,
    /// The job that this one is a retry of.
    pub retry_of: Option<Uuid>,
    /// Where it is, and since when.
    pub status: JobStatus,
    /// What came of it so far.
    pub outcome: JobOutcome,
}

/// Where a job is in its life.
#[derive(Clone, Debug)]
pub struct JobStatus {
    /// The state.
    pub state: JobState,
    /// Changes with the row.
    pub version: i64,
    /// Attempts charged so far, the running one included.
    pub attempt: i32,
    /// Attempts that ended through no fault of its own.
    pub interruptions: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it may run, or could.
    pub run_at: DateTime<Utc>,
    /// When the running or last attempt was claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// When the running attempt times out.
    pub deadline_at: Option<DateTime<Utc>>,
    /// How far it is, where that is known.
    pub progress: Option<JobProgress>,
    /// The session that runs it.
    pub backend: Option<JobBackend>,
    /// When its cancellation was asked for.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// The version of the saved statement that its latest attempt ran.
    pub statement_version: Option<String>,
}

impl JobStatus {
    /// Of a job whose row has just been written.
    pub(in crate::queue) fn new(state: JobState, created_at: DateTime<Utc>, run_at: DateTime<Utc>) -> JobStatus {
        JobStatus {
            state,
            version: 1,
            attempt: 0,
            interruptions: 0,
            created_at,
            run_at,
            started_at: None,
            finished_at: None,
            deadline_at: None,
            progress: None,
            backend: None,
            cancel_requested_at: None,
            statement_version: None,
        }
    }
}

/// What came of a job.
#[derive(Clone, Debug, Default)]
pub struct JobOutcome {
    /// Rows and bytes, once it has ended.
    pub statistics: JobStatistics,
    /// What it produced, where it did.
    pub result: Option<JobResult>,
    /// Why the job, or its last attempt, failed.
    pub error: Option<RawJson>,
    /// What the kind returned.
    pub output: Option<RawJson>,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for its time: `run_at` is to come, or a retry waits out its delay.
    Scheduled,
    /// Can be claimed.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Stopped by its caller, and can go on from where it was.
    Paused,
    /// Ended well.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Stopped by its caller for good.
    Cancelled,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [JobState; 7] = [
        JobState::Scheduled,
        JobState::Queued,
        JobState::Running,
        JobState::Paused,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// The word in columns, in JSON and in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Scheduled => "scheduled",
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// The state that a word names.
    pub fn parse(word: &str) -> Option<JobState> {
        JobState::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// The job has ended and never changes again.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a running job was when it last said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// What it is doing.
    pub phase: String,
    /// How much is done, in `unit`.
    pub done: i64,
    /// How much there is, where that is known.
    pub total: Option<i64>,
    /// What is counted.
    pub unit: String,
    /// Whether `total` is known, estimated or neither.
    pub basis: ProgressBasis,
    /// Milliseconds that it still takes, by its rate or by what the same work took before; counted from `sampled_at`.
    #[serde(default)]
    pub eta_ms: Option<i64>,
    /// What its session waits for, such as `Lock:relation`.
    #[serde(default)]
    pub wait_event: Option<String>,
    /// Whom its session waits for. `None` while nobody has looked.
    #[serde(default)]
    pub blocked_by: Option<Vec<BlockedBy>>,
    /// Bytes that its session has in temporary files, where the target's role may see them.
    #[serde(default)]
    pub temp_bytes: Option<i64>,
    /// When it said so.
    pub sampled_at: DateTime<Utc>,
}

/// What a percentage is based on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressBasis {
    /// Counted.
    Exact,
    /// From the planner or from history.
    Estimated,
    /// Nothing is known of the whole.
    None,
}

impl ProgressBasis {
    /// The word in columns and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ProgressBasis::Exact => "exact",
            ProgressBasis::Estimated => "estimated",
            ProgressBasis::None => "none",
        }
    }

    /// The basis that a word names; an unknown one promises nothing.
    pub fn parse(word: &str) -> ProgressBasis {
        match word {
            "exact" => ProgressBasis::Exact,
            "estimated" => ProgressBasis::Estimated,
            _ => ProgressBasis::None,
        }
    }
}

/// What a job moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatistics {
    /// Rows that its statements returned.
    pub rows_returned: i64,
    /// Rows that its statements changed.
    pub rows_affected: i64,
    /// Uncompressed bytes of its result.
    pub result_bytes: i64,
}

/// What is left of what a job produced.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// `available`, `expired` or `deleted`.
    pub state: ResultState,
    /// Rows in it.
    pub rows: i64,
    /// Uncompressed bytes.
    pub bytes: i64,
    /// It ends at a limit.
    pub truncated: bool,
    /// When it goes, or went.
    pub expires_at: DateTime<Utc>,
}

/// Whether a result can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultState {
    /// It can.
    Available,
    /// Its time has passed.
    Expired,
    /// It was deleted on request.
    Deleted,
}

impl ResultState {
    /// The word in columns and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ResultState::Available => "available",
            ResultState::Expired => "expired",
            ResultState::Deleted => "deleted",
        }
    }

    /// The state that a word names.
    pub fn parse(word: &str) -> Option<ResultState> {
        [ResultState::Available, ResultState::Expired, ResultState::Deleted].into_iter().find(|s| s.as_str() == word)
    }
}

/// A server process on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JobBackend {
    /// Its process id.
    pub pid: i32,
    /// When it started: together with the id it names one session for ever.
    pub backend_start: DateTime<Utc>,
}
