//! The job as callers see it. Every field is always there, null where there is nothing to say or the feature that
//! would say it is missing.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::queue::model::BlockedBy;
use crate::queue::model::{JobBackend, JobProgress, JobStatistics, ProgressBasis, ResultState};
use crate::queue::{Job, JobState, RawJson};
use crate::work::STATEMENT;

/// A time in RFC 3339, UTC, with microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub DateTime<Utc>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

/// A job.
#[derive(Serialize)]
pub struct JobResource<'j> {
    id: Uuid,
    kind: &'j str,
    state: JobState,
    version: i64,
    attempt: i32,
    max_attempts: i32,
    interruptions: i32,
    target: &'j str,
    queue: &'j str,
    priority: i16,
    labels: &'j BTreeMap<String, String>,
    args: &'j RawJson,
    statement: Option<StatementOf<'j>>,
    created_at: Time,
    run_at: Time,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    deadline_at: Option<Time>,
    timeout_ms: i64,
    result_ttl_ms: i64,
    time_zone: Option<&'j str>,
    lock_timeout_ms: Option<i64>,
    queue_position: Option<i64>,
    timings: Timings,
    progress: Option<Progress<'j>>,
    statistics: JobStatistics,
    result: ResultSummary,
    backend: Option<Backend>,
    cancel_requested_at: Option<Time>,
    error: Option<&'j RawJson>,
    retry_of: Option<Uuid>,
    output: Option<&'j RawJson>,
    links: Links,
}

/// The saved statement that a job runs.
#[derive(Serialize)]
struct StatementOf<'j> {
    name: String,
    /// The one that its latest attempt ran; `null` while there was none.
    version: Option<&'j str>,
}

#[derive(Serialize)]
struct Timings {
    queued_ms: Option<i64>,
    running_ms: Option<i64>,
}

#[derive(Serialize)]
struct Progress<'j> {
    phase: &'j str,
    done: Option<i64>,
    total: Option<i64>,
    unit: Option<&'j str>,
    percent: Option<f64>,
    basis: ProgressBasis,
    eta_ms: Option<i64>,
    wait_event: Option<&'j str>,
    blocked_by: Option<&'j [BlockedBy]>,
    temp_bytes: Option<i64>,
    sampled_at: Time,
}

#[derive(Serialize)]
struct ResultSummary {
    state: &'static str,
    rows: Option<i64>,
    bytes: Option<i64>,
    truncated: bool,
    expires_at: Option<Time>,
}

#[derive(Serialize)]
struct Backend {
    pid: i32,
    backend_start: Time,
}

#[derive(Serialize)]
struct Links {
    #[serde(rename = "self")]
    itself: String,
    result: String,
    events: Option<String>,
    cancel: String,
}

/// A job's path.
pub fn path(id: Uuid) -> String {
    format!("/v1/jobs/{id}")
}

impl<'j> JobResource<'j> {
    /// The wire form of a job whose kind keeps a result or not.
    pub fn of(job: &'j Job, produces_result: bool) -> JobResource<'j> {
        let ran_from = job.status.started_at;
        JobResource {
            id: job.id,
            kind: &job.spec.kind,
            state: job.status.state,
            version: job.status.version,
            attempt: job.status.attempt,
            max_attempts: job.spec.max_attempts,
            interruptions: job.status.interruptions,
            target: &job.spec.target,
            queue: &job.spec.queue,
            priority: job.spec.priority,
            labels: &job.spec.labels,
            args: &job.spec.args,
            statement: StatementOf::of(job),
            created_at: Time(job.status.created_at),
            run_at: Time(job.status.run_at),
            started_at: job.status.started_at.map(Time),
            finished_at: job.status.finished_at.map(Time),
            deadline_at: job.status.deadline_at.filter(|_| job.status.state == JobState::Running).map(Time),
            timeout_ms: job.spec.timeout_ms,
            result_ttl_ms: job.spec.result_ttl_ms,
            time_zone: job.spec.time_zone.as_deref(),
            lock_timeout_ms: job.spec.lock_timeout_ms,
            queue_position: None,
            timings: Timings {
                queued_ms: ran_from.map(|start| (start - job.status.run_at).num_milliseconds().max(0)),
                running_ms: ran_from
                    .zip(job.status.finished_at)
                    .map(|(start, end)| (end - start).num_milliseconds().max(0)),
            },
            progress: job
                .status
                .progress
                .as_ref()
                .map(|progress| Progress::of(progress, job.status.state == JobState::Running)),
            statistics: job.outcome.statistics,
            result: ResultSummary::of(job, produces_result),
            backend: job
                .status
                .backend
                .map(|JobBackend { pid, backend_start }| Backend { pid, backend_start: Time(backend_start) }),
            cancel_requested_at: job.status.cancel_requested_at.map(Time),
            error: job.outcome.error.as_ref(),
            retry_of: job.retry_of,
            output: job.outcome.output.as_ref(),
            links: Links {
                itself: path(job.id),
                result: format!("{}/result", path(job.id)),
                events: None,
                cancel: format!("{}/cancel", path(job.id)),
            },
        }
    }
}

impl<'j> StatementOf<'j> {
    fn of(job: &'j Job) -> Option<StatementOf<'j>> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let named = Some(job).filter(|job| job.spec.kind == STATEMENT)?;
        let Named { name } = serde_json::from_str(named.spec.args.text()).ok()?;
        Some(StatementOf { name, version: job.status.statement_version.as_deref() })
    }
}

impl<'j> Progress<'j> {
    /// Of a job that doesn't run, nothing is said that holds for a moment only.
    fn of(progress: &'j JobProgress, running: bool) -> Progress<'j> {
        // Tenths of a percent, so that what is shown is what is meant.
        let tenths = progress.total.filter(|total| *total > 0 && progress.basis != ProgressBasis::None).map(|total| {
            let tenths = i128::from(progress.done.clamp(0, total)) * 1000 / i128::from(total);
            f64::from(i32::try_from(tenths).unwrap_or(1000)) / 10.0
        });
        // What is counted in nothing isn't counted.
        let unit = Some(progress.unit.as_str()).filter(|unit| !unit.is_empty());
        Progress {
            phase: &progress.phase,
            done: unit.map(|_| progress.done),
            total: progress.total,
            unit,
            percent: tenths,
            basis: progress.basis,
            eta_ms: progress.eta_ms.filter(|_| running),
            wait_event: progress.wait_event.as_deref().filter(|_| running),
            blocked_by: progress.blocked_by.as_deref().filter(|_| running),
            temp_bytes: progress.temp_bytes.filter(|_| running),
            sampled_at: Time(progress.sampled_at),
        }
    }
}

impl ResultSummary {
    fn of(job: &Job, produces_result: bool) -> ResultSummary {
        let Some(result) = &job.outcome.result else {
            let state = if produces_result && !job.status.state.is_final() { "pending" } else { "none" };
            return ResultSummary { state, rows: None, bytes: None, truncated: false, expires_at: None };
        };
        ResultSummary {
            state: result.state.as_str(),
            rows: Some(result.rows),
            bytes: Some(result.bytes),
            truncated: result.truncated,
            expires_at: Some(Time(result.expires_at)),
        }
    }
}

/// A strong entity tag over everything in a job that changes.
pub fn etag(job: &Job) -> String {
    let progress = job.status.progress.as_ref().map_or(0, |progress| progress.sampled_at.timestamp_micros());
    let result = job.outcome.result.as_ref().map_or("none", |result| ResultState::as_str(result.state));
    format!("\"{}-{progress}-{result}\"", job.status.version)
}
