//! `GET /v1/jobs/{id}`, and `POST /v1/jobs/{id}/cancel`, `/pause` and `/resume`.

use std::sync::Arc;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use uuid::Uuid;

use crate::http::extract::body::no_fields;
use crate::http::extract::headers::{if_none_match, prefer_wait};
use crate::http::extract::parse_id;
use crate::http::jobs::wire::{self, JobResource};
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State};
use crate::queue::lifecycle::cancel;
use crate::queue::lifecycle::cancel::CancelOutcome;
use crate::queue::lifecycle::pause;
use crate::queue::lifecycle::pause::{PauseOutcome, ResumeOutcome};
use crate::queue::record::read;
use crate::queue::record::report;
use crate::queue::{Job, JobState};

/// A job, or 404.
pub(in crate::http) async fn read(shared: &Shared, id: Uuid) -> Result<Job, Problem> {
    let job = shared.doorway.run(move |connection| read::job(connection, id)).await?;
    job.ok_or_else(|| not_found(id))
}

pub(in crate::http) fn not_found(id: Uuid) -> Problem {
    Problem::new(Code::JobNotFound, format!("there is no job {id}, or its record is past its time"))
        .field("id", "expected the id of a job")
}

/// The longest wait that a caller is asked for, in seconds: a job can be cancelled, or begin earlier, at any time.
const LONGEST_WAIT: i64 = 60;

/// Seconds until a job may begin, rounded up; 0 for one that may, or has begun.
pub(in crate::http) fn until_it_may_begin(job: &Job) -> i64 {
    if job.status.state != JobState::Scheduled {
        return 0;
    }
    (job.status.run_at - Utc::now()).num_milliseconds().max(0).saturating_add(999) / 1_000
}

/// How many seconds a caller should wait before it asks again: the longer a job runs, the less often; of one that
/// begins later, not before.
pub(in crate::http) fn retry_after(job: &Job) -> u64 {
    let ahead = until_it_may_begin(job).min(LONGEST_WAIT);
    by_age(job).max(u64::try_from(ahead).unwrap_or_default())
}

fn by_age(job: &Job) -> u64 {
    match (Utc::now() - job.status.created_at).num_seconds() {
        ..10 => 1,
        10..60 => 2,
        60..600 => 5,
        _ => 10,
    }
}

pub(in crate::http) async fn get(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let mut job = read(&shared, id).await?;
    let mut applied = None;
    if let Some(wait) = prefer_wait(&request) {
        // Without a tag the caller knows what it is told now; with one, what the tag stands for.
        let has_tag = request.headers().contains_key(header::IF_NONE_MATCH);
        let stale = has_tag && !if_none_match(&request, &wire::etag(&job));
        // Of an ended job only the result can change, and only who names a tag waits for that.
        let settled = job.status.state.is_final() && !has_tag;
        let waited = if stale || settled { Some(false) } else { wait_for_change(&shared, &job, wait).await };
        if !(stale || settled) {
            job = read(&shared, id).await?;
        }
        applied = waited.map(|_| wait);
    }
    let etag = wire::etag(&job);
    let unchanged = if_none_match(&request, &etag);
    let mut response = HttpResponse::build(if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
    response.insert_header((header::ETAG, etag));
    if !job.status.state.is_final() {
        response.insert_header((header::RETRY_AFTER, retry_after(&job).to_string()));
    }
    if let Some(wait) = applied {
        response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
    }
    if unchanged { Ok(response.finish()) } else { Ok(response.json(resource(&shared, &job))) }
}

async fn wait_for_change(shared: &Shared, job: &Job, wait: std::time::Duration) -> Option<bool> {
    let (version, result) = (job.status.version, job.outcome.result.as_ref().map(|result| result.state));
    let until = tokio::time::Instant::now() + wait;
    shared.waiters.wait(job.id, until, move |mark| mark.version != version || mark.result_state != result).await
}

/// The wire form of a job.
pub(in crate::http) fn resource<'j>(shared: &Shared, job: &'j Job) -> JobResource<'j> {
    let runs = shared.registry.resolve(&job.spec.kind, &job.spec.args.0);
    JobResource::of(job, runs.produces_result())
}

pub(in crate::http) async fn cancel(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    no_fields(&request, body)?;
    let outcome = shared.doorway.run(move |connection| cancel::request(connection, id)).await?;
    let (status, job) = match outcome {
        CancelOutcome::NotFound => return read(&shared, id).await.map(|_| HttpResponse::Accepted().finish()),
        CancelOutcome::AlreadyFinished(job) => return Err(already_finished(&job)),
        CancelOutcome::AlreadyCancelled(job) => (StatusCode::OK, job),
        CancelOutcome::Cancelled(job) => {
            report::cancelled(&job);
            (StatusCode::ACCEPTED, job)
        }
        CancelOutcome::Requested(job) => (StatusCode::ACCEPTED, job),
    };
    if job.status.state == JobState::Running {
        shared.signals.cancel_requested(id);
    }
    Ok(changed(&shared, status, &job))
}

fn already_finished(job: &Job) -> Problem {
    Problem::new(Code::AlreadyFinished, format!("the job has ended as {}", job.status.state))
        .field("id", "expected a job that has not ended")
}

/// The answer to a request that asked something of a job.
fn changed(shared: &Shared, status: StatusCode, job: &Job) -> HttpResponse {
    if status == StatusCode::ACCEPTED {
        shared.signals.job_changed(job.id);
    }
    HttpResponse::build(status)
        .insert_header((header::LOCATION, wire::path(job.id)))
        .insert_header((header::ETAG, wire::etag(job)))
        .json(resource(shared, job))
}

fn not_resumable(shared: &Shared, job: &Job) -> Problem {
    let kinds = shared.registry.resumable_kinds().join(", ");
    Problem::new(Code::KindNotResumable, format!("a job of kind {} can't go on from where it was", job.spec.kind))
        .field("id", format!("expected a job of one of these kinds: {kinds}"))
        .hint("cancel it, and submit it again later")
}

pub(in crate::http) async fn pause(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    no_fields(&request, body)?;
    let registry = Arc::clone(&shared.registry);
    let asked = shared
        .doorway
        .run(move |connection| pause::request(connection, id, |kind, args| registry.resolve(kind, args).resumable()));
    let (status, job) = match asked.await? {
        PauseOutcome::NotFound => return Err(not_found(id)),
        PauseOutcome::AlreadyFinished(job) => return Err(already_finished(&job)),
        PauseOutcome::NotResumable(job) => return Err(not_resumable(&shared, &job)),
        PauseOutcome::Already(job) => (StatusCode::OK, job),
        PauseOutcome::Paused(job) | PauseOutcome::Requested(job) => (StatusCode::ACCEPTED, job),
    };
    match job.status.state {
        JobState::Running => shared.signals.pause_requested(id),
        // What became of its last transaction is found out now, and not when its time comes.
        JobState::Scheduled => shared.signals.scheduled(),
        _ => {}
    }
    Ok(changed(&shared, status, &job))
}

pub(in crate::http) async fn resume(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    no_fields(&request, body)?;
    let registry = Arc::clone(&shared.registry);
    let asked = shared
        .doorway
        .run(move |connection| pause::resume(connection, id, |kind, args| registry.resolve(kind, args).resumable()));
    let outcome = asked.await?;
    let ready = outcome.ready();
    let (status, job) = match outcome {
        ResumeOutcome::NotFound => return Err(not_found(id)),
        ResumeOutcome::AlreadyFinished(job) => return Err(already_finished(&job)),
        ResumeOutcome::NotResumable(job) => return Err(not_resumable(&shared, &job)),
        ResumeOutcome::Already(job) => (StatusCode::OK, job),
        ResumeOutcome::Resumed(job) | ResumeOutcome::Withdrawn(job) => (StatusCode::ACCEPTED, job),
    };
    match ready {
        Some(hint) => shared.signals.ready(vec![hint]),
        None if job.status.state == JobState::Scheduled => shared.signals.scheduled(),
        None => {}
    }
    Ok(changed(&shared, status, &job))
}
