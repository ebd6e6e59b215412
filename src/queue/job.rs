//! The nouns of the queue: a job, its states, its error, its lease, and the limits that bound them.
//!
//! Knows how they are stored; knows no statement.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

pub use crate::db::targets::MAX_LOCK_TIMEOUT_MS;
pub use crate::db::time_zone::{EXPECTED as TIME_ZONE_EXPECTED, MAX_TIME_ZONE_CHARS, is_name as is_time_zone};
pub use crate::queue::blocked_by::BlockedBy;

/// `timeout_ms` when the caller names none: 1 hour.
pub const DEFAULT_TIMEOUT_MS: i64 = 3_600_000;
/// The longest `timeout_ms`: 24 hours.
pub const MAX_TIMEOUT_MS: i64 = 86_400_000;
/// `max_attempts` when the caller names none.
pub const DEFAULT_MAX_ATTEMPTS: i32 = 3;
/// The most attempts that a caller can ask for.
pub const MAX_MAX_ATTEMPTS: i32 = 25;
/// `priority` when the caller names none; 0 goes first, 9 last.
pub const DEFAULT_PRIORITY: i16 = 5;
/// The last priority.
pub const MAX_PRIORITY: i16 = 9;
/// How long a result is kept when the caller names nothing: 24 hours.
pub const DEFAULT_RESULT_TTL_MS: i64 = 86_400_000;
/// The longest that a caller can have a result kept: 30 days, as long as the record of the job itself.
pub const MAX_RESULT_TTL_MS: i64 = 2_592_000_000;
/// The most labels on a job.
pub const MAX_LABELS: usize = 32;
/// The longest label key and value, in characters.
pub const MAX_LABEL_CHARS: usize = 128;
/// The longest message, detail and hint of an error, in bytes; what is longer is cut, and ends in `…`.
pub const MAX_ERROR_BYTES: usize = 8 * 1024;
/// The longest name of a kind, a queue or a target, in characters.
pub const MAX_NAME_CHARS: usize = 128;
/// The longest arguments, as JSON text in bytes: 1 MiB.
pub const MAX_ARGS_BYTES: usize = 1024 * 1024;
/// The deepest nesting of arguments: with the request around them, 64 levels.
pub const MAX_ARGS_DEPTH: usize = 63;
/// A job during which so many workers in a row died ends as `failed`, `poison`.
pub const MAX_LOST_IN_A_ROW: i32 = 3;
/// The same for interruptions of every kind, orderly shutdowns included.
pub const MAX_INTERRUPTED_IN_A_ROW: i32 = 20;
/// An id's time may differ from the database's clock by this much.
pub const MAX_ID_CLOCK_DIFFERENCE: Duration = Duration::from_secs(86_400);

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

/// A JSON document kept as the text that came in: no number passes through a float.
#[derive(Clone, Debug, AsExpression, FromSqlRow, Serialize, Deserialize)]
#[diesel(sql_type = sql_types::Json)]
#[diesel(sql_type = sql_types::Jsonb)]
#[serde(transparent)]
pub struct RawJson(pub Box<RawValue>);

impl RawJson {
    /// The document's text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The JSON of `value`.
    ///
    /// # Errors
    /// When `value` has no JSON form.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<RawJson> {
        serde_json::value::to_raw_value(value).map(RawJson)
    }

    fn read(bytes: &[u8]) -> deserialize::Result<RawJson> {
        let text = std::str::from_utf8(bytes)?.to_owned();
        Ok(RawJson(RawValue::from_string(text)?))
    }
}

impl FromSql<sql_types::Json, Pg> for RawJson {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        RawJson::read(value.as_bytes())
    }
}

impl FromSql<sql_types::Jsonb, Pg> for RawJson {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes().split_first() {
            Some((1, text)) => RawJson::read(text),
            _ => Err("unknown version of the binary form of jsonb".into()),
        }
    }
}

impl ToSql<sql_types::Json, Pg> for RawJson {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, self.text().as_bytes())?;
        Ok(IsNull::No)
    }
}

impl ToSql<sql_types::Jsonb, Pg> for RawJson {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, &[1])?;
        std::io::Write::write_all(out, self.text().as_bytes())?;
        Ok(IsNull::No)
    }
}

/// A job that a caller asks for, not yet stored: its id is made when it is.
///
/// [`Work::job`](crate::kinds::Work::job) makes one of a kind's own type, and
/// [`Registry::job`](crate::kinds::Registry::job) one whose kind and arguments come from elsewhere; both check them.
///
/// ```
/// use slowlane::queue::{NewJob, RawJson};
///
/// let args = RawJson::of(&serde_json::json!({"sql": "REFRESH MATERIALIZED VIEW sales"}))?;
/// let job = NewJob { priority: 8, max_attempts: 1, ..NewJob::new("execute", args) };
/// assert_eq!(job.queue, "default");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The name of the kind of work.
    pub kind: String,
    /// What the kind is told, as the caller wrote it.
    pub args: RawJson,
    /// The database that the work runs on.
    pub target: String,
    /// The queue that it waits in.
    pub queue: String,
    /// 0 to 9, lower first.
    pub priority: i16,
    /// Not before this time; a time that has passed means now.
    pub run_at: Option<DateTime<Utc>>,
    /// How long one attempt may take.
    pub timeout_ms: i64,
    /// How often it is tried.
    pub max_attempts: i32,
    /// The caller's own words for finding it again.
    pub labels: BTreeMap<String, String>,
    /// How long its result is kept.
    pub result_ttl_ms: i64,
    /// The time zone of its sessions on the target, by name. That of the target or its login when absent.
    pub time_zone: Option<String>,
    /// How long its statements wait for a lock, in milliseconds: 1 to [`MAX_LOCK_TIMEOUT_MS`]. As the target says when
    /// absent.
    pub lock_timeout_ms: Option<i64>,
    /// The upload that its arguments name: kept until the job has ended. An `import`'s is known from its arguments.
    pub upload: Option<Uuid>,
}

impl NewJob {
    /// A job of `kind` on the target `default`, with every default of the contract.
    pub fn new(kind: &str, args: RawJson) -> NewJob {
        NewJob {
            kind: kind.to_owned(),
            args,
            target: "default".to_owned(),
            queue: "default".to_owned(),
            priority: DEFAULT_PRIORITY,
            run_at: None,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            labels: BTreeMap::new(),
            result_ttl_ms: DEFAULT_RESULT_TTL_MS,
            time_zone: None,
            lock_timeout_ms: None,
            upload: None,
        }
    }
}

/// The right to write about a job: it ends when somebody else claims the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job_id: Uuid,
    /// Grows with every claim of this job and never repeats.
    pub number: i64,
    /// The process that claimed it.
    pub worker_id: Uuid,
}

impl Lease {
    /// The `application_name` of the sessions that this attempt opens on its target.
    pub fn application_name(&self) -> String {
        Lease::application_name_of(self.job_id, self.number)
    }

    /// As [`Lease::application_name`], of the lease of this number, whoever had it.
    pub fn application_name_of(job_id: Uuid, number: i64) -> String {
        format!("slowlane:{job_id}:{number}")
    }

    /// The job whose attempt has this `application_name`; `None` when it is nobody's.
    pub fn job_of(application_name: &str) -> Option<Uuid> {
        let (job, lease) = application_name.strip_prefix("slowlane:")?.split_once(':')?;
        lease.parse::<i64>().ok()?;
        job.parse().ok()
    }
}

/// Why a job or an attempt failed, as its caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A stable word: an [`ErrorCode`](crate::queue::ErrorCode), or one of an embedder's own kind.
    pub code: String,
    /// What happened, and what to do next.
    pub message: String,
    /// The same job may well succeed when it is tried again.
    pub retryable: bool,
    /// The server's SQLSTATE, where there is one.
    pub sqlstate: Option<String>,
    /// The server's DETAIL.
    pub detail: Option<String>,
    /// The server's HINT, or ours.
    pub hint: Option<String>,
    /// Where in the caller's SQL, in characters from 1.
    pub position: Option<u32>,
    /// The column that the server names, such as that of a value which it can't read. Left out of the JSON when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The constraint that the server names. Left out of the JSON when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// After a lock was waited for in vain: who held it when it was looked at last. `None` where nobody was seen.
    #[serde(default)]
    pub blocked_by: Option<Vec<BlockedBy>>,
}

impl JobError {
    /// An error of slowlane's own by its [`ErrorCode`](crate::queue::ErrorCode), or of an embedder's kind by a word of its own; not to be tried
    /// again. Its texts are cut at [`MAX_ERROR_BYTES`].
    pub fn new(code: impl AsRef<str>, message: impl Into<String>) -> JobError {
        JobError {
            code: code.as_ref().to_owned(),
            message: cut(message.into()),
            retryable: false,
            sqlstate: None,
            detail: None,
            hint: None,
            position: None,
            column: None,
            constraint: None,
            blocked_by: None,
        }
    }

    /// The same error, worth another try.
    pub fn retryable(mut self) -> JobError {
        self.retryable = true;
        self
    }

    /// The same error with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> JobError {
        self.hint = Some(cut(hint.into()));
        self
    }

    /// The same error, each of its texts cut at [`MAX_ERROR_BYTES`]: a server's may have the whole of a value.
    pub fn bounded(self) -> JobError {
        let (detail, hint) = (self.detail.map(cut), self.hint.map(cut));
        JobError { message: cut(self.message), detail, hint, ..self }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES - '…'.len_utf8()));
        text.push('…');
    }
    text
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// When a job that failed in a way worth another try runs again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The delay after the first failure. Doubles with each further one.
    pub base: Duration,
    /// The longest delay.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(600) }
    }
}

impl RetryPolicy {
    /// The delay after the failure of attempt `attempt` (from 1): exponential, then between half and all of it,
    /// so that jobs which failed together don't come back together.
    pub fn delay(&self, attempt: i32) -> Duration {
        let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(0).min(20);
        let full = self.base.saturating_mul(1 << doublings).min(self.cap);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// A job as it is stored, finished or not.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's id: a UUIDv7.
    pub id: Uuid,
    /// The kind of work.
    pub kind: String,
    /// Where it is in its life.
    pub state: JobState,
    /// Changes with the row.
    pub version: i64,
    /// Attempts charged so far, the running one included.
    pub attempt: i32,
    /// Attempts that it may use.
    pub max_attempts: i32,
    /// Attempts that ended through no fault of its own.
    pub interruptions: i32,
    /// The database that the work runs on.
    pub target: String,
    /// The queue that it waits in.
    pub queue: String,
    /// 0 to 9, lower first.
    pub priority: i16,
    /// The caller's own words for finding it again.
    pub labels: BTreeMap<String, String>,
    /// The arguments as the caller wrote them.
    pub args: RawJson,
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
    /// How long one attempt may take.
    pub timeout_ms: i64,
    /// How long its result is kept.
    pub result_ttl_ms: i64,
    /// The time zone of its sessions, where it names one.
    pub time_zone: Option<String>,
    /// How long its statements wait for a lock, where it says that.
    pub lock_timeout_ms: Option<i64>,
    /// How far it is, where that is known.
    pub progress: Option<JobProgress>,
    /// Rows and bytes, once it has ended.
    pub statistics: JobStatistics,
    /// What it produced, where it did.
    pub result: Option<JobResult>,
    /// The session that runs it.
    pub backend: Option<JobBackend>,
    /// When its cancellation was asked for.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// Why the job, or its last attempt, failed.
    pub error: Option<RawJson>,
    /// What the kind returned.
    pub output: Option<RawJson>,
    /// The job that this one is a retry of.
    pub retry_of: Option<Uuid>,
    /// The version of the saved statement that its latest attempt ran.
    pub statement_version: Option<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_later_and_later_and_never_in_step() {
        let policy = RetryPolicy { base: Duration::from_secs(2), cap: Duration::from_secs(60) };
        for (attempt, most) in [(1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (i32::MAX, 60)] {
            let most = Duration::from_secs(most);
            let delays: Vec<Duration> = (0..50).map(|_| policy.delay(attempt)).collect();
            assert!(delays.iter().all(|delay| *delay >= most / 2 && *delay <= most), "{attempt}: {delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]), "{attempt}");
        }
    }

    #[test]
    fn the_texts_of_an_error_are_bounded() {
        let long = "é".repeat(100_000);
        let error = JobError::new("e", long.clone()).with_hint(long.clone());
        let literal = JobError { detail: Some(long.clone()), hint: Some(long.clone()), message: long, ..error.clone() };
        let bounded = literal.bounded();
        for text in
            [&error.message, &bounded.message].into_iter().chain([&error, &bounded].map(|e| e.hint.as_ref().unwrap()))
        {
            assert!(text.len() <= MAX_ERROR_BYTES && text.len() > MAX_ERROR_BYTES - 5 && text.ends_with("é…"));
        }
        assert!(bounded.detail.is_some_and(|detail| detail.len() <= MAX_ERROR_BYTES));
        assert_eq!(JobError::new("e", "short").message, "short");
    }
}
