//! Reading jobs: one, a page, the marks of many, and counts.
//!
//! A job is in `jobs` or in `finished_jobs`. Both are read by one statement, so that a job which moves between them
//! is never missed and never seen twice.

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Json, Jsonb, Nullable, Text, Timestamptz};
use uuid::Uuid;

use crate::db::{DbError, prepared};
use crate::queue::model::{
    Job, JobBackend, JobOutcome, JobProgress, JobResult, JobSpec, JobState, JobStatistics, JobStatus, Labels, RawJson,
    ResultState, carried, sql_list,
};

/// The columns of [`JobRow`] from an unfinished job `j`.
fn live_columns() -> String {
    let carried = sql_list(carried(), "j.");
    format!(
        "{carried}, j.state, j.interruptions, j.version, NULL::timestamptz AS finished_at,
         NULL::bigint AS rows_returned, NULL::bigint AS rows_affected, NULL::bigint AS result_bytes,
         (SELECT json_build_object('phase', p.phase, 'done', p.done, 'total', p.total, 'unit', p.unit, 'basis', p.basis,
                                   'eta_ms', p.eta_ms, 'wait_event', p.wait_event, 'blocked_by', p.blocked_by,
                                   'temp_bytes', p.temp_bytes, 'sampled_at', p.sampled_at)
            FROM job_progress p WHERE p.job_id = j.id AND p.lease = j.lease AND j.state IN ('running', 'paused')) AS progress,
         NULL::json AS output, j.error"
    )
}

/// The columns of [`JobRow`] from a finished job `j`.
fn finished_columns() -> String {
    let carried = sql_list(carried(), "j.");
    format!(
        "{carried}, j.state, j.interruptions, j.version, j.finished_at,
         j.rows_returned, j.rows_affected, j.result_bytes, j.progress, j.output, j.error"
    )
}

const RESULT_COLUMNS: &str =
    "r.state AS result_state, r.rows AS stored_rows, r.bytes AS stored_bytes, r.truncated, r.expires_at";
#[derive(QueryableByName)]
struct JobRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(embed)]
    spec: JobSpec,
    #[diesel(sql_type = Nullable<diesel::sql_types::Uuid>)]
    retry_of: Option<Uuid>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Integer)]
    interruptions: i32,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    finished_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    deadline_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Integer>)]
    backend_pid: Option<i32>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    backend_start: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    cancel_requested_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    statement_version: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    rows_returned: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    rows_affected: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    result_bytes: Option<i64>,
    #[diesel(sql_type = Nullable<Json>)]
    progress: Option<RawJson>,
    #[diesel(sql_type = Nullable<Json>)]
    output: Option<RawJson>,
    #[diesel(sql_type = Nullable<Json>)]
    error: Option<RawJson>,
    #[diesel(sql_type = Nullable<Text>)]
    result_state: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    stored_rows: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    stored_bytes: Option<i64>,
    #[diesel(sql_type = Nullable<Bool>)]
    truncated: Option<bool>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Job {
        let result = row.result();
        let backend = row.backend_pid.zip(row.backend_start);
        Job {
            id: row.id,
            spec: row.spec,
            retry_of: row.retry_of,
            status: JobStatus {
                // The tables' CHECK lets no other word in.
                state: JobState::parse(&row.state).unwrap_or(JobState::Failed),
                version: row.version,
                attempt: row.attempt,
                interruptions: row.interruptions,
                created_at: row.created_at,
                run_at: row.run_at,
                started_at: row.started_at,
                finished_at: row.finished_at,
                deadline_at: row.deadline_at,
                // Written by this program; one that can't be read is no reason to hide the job.
                progress: row.progress.and_then(|json| serde_json::from_str::<JobProgress>(json.text()).ok()),
                backend: backend.map(|(pid, backend_start)| JobBackend { pid, backend_start }),
                cancel_requested_at: row.cancel_requested_at,
                statement_version: row.statement_version,
            },
            outcome: JobOutcome {
                statistics: JobStatistics {
                    rows_returned: row.rows_returned.unwrap_or(0),
                    rows_affected: row.rows_affected.unwrap_or(0),
                    result_bytes: row.result_bytes.unwrap_or(0),
                },
                result,
                error: row.error,
                output: row.output,
            },
        }
    }
}

impl JobRow {
    fn result(&self) -> Option<JobResult> {
        Some(JobResult {
            state: ResultState::parse(self.result_state.as_deref()?)?,
            rows: self.stored_rows?,
            bytes: self.stored_bytes?,
            truncated: self.truncated?,
            expires_at: self.expires_at?,
        })
    }
}

/// One job, in whatever state.
///
/// # Errors
/// When the database fails.
pub fn job(connection: &mut PgConnection, id: Uuid) -> Result<Option<Job>, DbError> {
    let (live, finished) = (live_columns(), finished_columns());
    let sql = format!(
        "SELECT j.*, {RESULT_COLUMNS}
           FROM (SELECT {live} FROM jobs j WHERE j.id = $1
                 UNION ALL SELECT {finished} FROM finished_jobs j WHERE j.id = $1) j
           LEFT JOIN results r ON r.job_id = j.id"
    );
    let row = prepared(sql).bind::<diesel::sql_types::Uuid, _>(id).get_result::<JobRow>(connection).optional()?;
    Ok(row.map(Job::from))
}

/// Which jobs a list holds. What is `None` or empty doesn't matter.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Only jobs in this state.
    pub state: Option<JobState>,
    /// Only jobs of this kind.
    pub kind: Option<String>,
    /// Only jobs of this queue.
    pub queue: Option<String>,
    /// Only jobs on this target.
    pub target: Option<String>,
    /// Only jobs that carry all of these labels.
    pub labels: Labels,
    /// Only jobs accepted at or after this time.
    pub created_after: Option<DateTime<Utc>>,
    /// Only jobs accepted before this time.
    pub created_before: Option<DateTime<Utc>>,
}

/// A page of at most `limit` jobs, newest id first, all of them with ids below `before`.
///
/// # Errors
/// When the database fails, or can't answer within the connection's `statement_timeout`.
pub fn list(
    connection: &mut PgConnection,
    filter: &ListFilter,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Job>, DbError> {
    // Spelled out twice, so that each table's own index gives the order and the limit reaches both scans.
    let conditions = "WHERE ($1 IS NULL OR j.id < $1) AND ($2 IS NULL OR j.state = $2) AND ($3 IS NULL OR j.kind = $3)
        AND ($4 IS NULL OR j.queue = $4) AND ($5 IS NULL OR j.target = $5) AND ($6 IS NULL OR j.labels @> $6)
        AND ($7 IS NULL OR j.created_at >= $7) AND ($8 IS NULL OR j.created_at < $8) ORDER BY j.id DESC LIMIT $9";
    let (live, finished) = (live_columns(), finished_columns());
    let sql = format!(
        "SELECT j.*, {RESULT_COLUMNS}
           FROM ((SELECT {live} FROM jobs j {conditions})
                 UNION ALL (SELECT {finished} FROM finished_jobs j {conditions})) j
           LEFT JOIN results r ON r.job_id = j.id ORDER BY j.id DESC LIMIT $9"
    );
    let filtered = diesel::sql_query(sql)
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(before)
        .bind::<Nullable<Text>, _>(filter.state.map(JobState::as_str))
        .bind::<Nullable<Text>, _>(filter.kind.as_deref())
        .bind::<Nullable<Text>, _>(filter.queue.as_deref())
        .bind::<Nullable<Text>, _>(filter.target.as_deref())
        .bind::<Nullable<Jsonb>, _>(Some(&filter.labels).filter(|labels| !labels.is_empty()))
        .bind::<Nullable<Timestamptz>, _>(filter.created_after)
        .bind::<Nullable<Timestamptz>, _>(filter.created_before)
        .bind::<BigInt, _>(limit);
    // Which plan is good depends on which conditions there are.
    let rows = connection.transaction(|connection| {
        connection.batch_execute("SET LOCAL plan_cache_mode = force_custom_plan")?;
        filtered.load::<JobRow>(connection)
    })?;
    Ok(rows.into_iter().map(Job::from).collect())
}

/// As much of a job as a waiter compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobMark {
    /// The job.
    pub id: Uuid,
    /// Changes with the row.
    pub version: i64,
    /// Where it is in its life.
    pub state: JobState,
    /// Whether its result can be fetched.
    pub result_state: Option<ResultState>,
}

#[derive(QueryableByName)]
struct MarkRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    result_state: Option<String>,
}

/// The marks of many jobs, by one statement. Ids that no job has are left out.
///
/// # Errors
/// When the database fails.
pub fn marks(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<JobMark>, DbError> {
    let rows = prepared(
        "SELECT j.id, j.version, j.state, r.state AS result_state
           FROM (SELECT id, version, state FROM jobs WHERE id = ANY($1)
                 UNION ALL SELECT id, version, state FROM finished_jobs WHERE id = ANY($1)) j
           LEFT JOIN results r ON r.job_id = j.id",
    )
    .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
    .load::<MarkRow>(connection)?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            Some(JobMark {
                id: row.id,
                version: row.version,
                state: JobState::parse(&row.state)?,
                result_state: row.result_state.as_deref().and_then(ResultState::parse),
            })
        })
        .collect())
}

/// How many jobs of a queue are in a state, and how long the oldest has been waiting to be claimed.
#[derive(Clone, Debug)]
pub struct QueueDepth {
    /// The queue.
    pub queue: String,
    /// One of the states of unfinished jobs.
    pub state: JobState,
    /// Jobs in that state.
    pub count: i64,
    /// Seconds since the oldest one's `run_at`; never below 0.
    pub oldest_age_s: f64,
}

#[derive(QueryableByName)]
struct DepthRow {
    #[diesel(sql_type = Text)]
    queue: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Double)]
    oldest_age_s: f64,
}

/// The depth of every queue, by state. Reads every unfinished job: for a gauge every few seconds, not for a request.
///
/// # Errors
/// When the database fails.
pub fn depths(connection: &mut PgConnection) -> Result<Vec<QueueDepth>, DbError> {
    let counts = diesel::sql_query(
        "SELECT queue, state, count(*) AS count,
                greatest(extract(epoch FROM clock_timestamp() - min(run_at)), 0)::float8 AS oldest_age_s
           FROM jobs GROUP BY queue, state",
    );
    // The one statement that wants the whole table.
    let rows = connection.transaction(|connection| {
        connection.batch_execute("SET LOCAL enable_seqscan = on")?;
        counts.load::<DepthRow>(connection)
    })?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let state = JobState::parse(&row.state)?;
            Some(QueueDepth { queue: row.queue, state, count: row.count, oldest_age_s: row.oldest_age_s })
        })
        .collect())
}
