//! `POST /v1/jobs/validate`: what a job would meet, without running it.
//!
//! The request is checked as `POST /v1/jobs` checks it. What only the target knows is asked by a job of the kind `validate`,
//! because only workers can reach a target: it goes before other jobs, and is waited for.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use crate::http::headers::prefer_wait;
use crate::http::jobs;
use crate::http::problem::{Code, Problem};
use crate::http::submit::{accepted, check_content_type, new_job, refuse_when_stopping, unreadable};
use crate::http::wire::{self, JobResource};
use crate::http::{State, strict_json};
use crate::kinds::{VALIDATE, Validation};
use crate::queue::accept::Accept;
use crate::queue::{Job, JobError, JobState, NewJob, RawJson};

/// How long the answer is waited for when the caller doesn't say: 10 s.
const WAIT: Duration = Duration::from_secs(10);
/// How long the job may take, in milliseconds.
const TIMEOUT_MS: i64 = 60_000;

pub(super) async fn validate(
    request: HttpRequest,
    shared: State,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    check_content_type(&request)?;
    let body = body.map_err(|error| unreadable(&error))?;
    let (job, _) = new_job(&shared, &strict_json::object(&body)?)?;
    if !shared.registry.validates(&job.kind, &job.args.0) || !shared.registry.contains(VALIDATE) {
        // Its arguments are right; there is nothing more that could be said without running it.
        return Ok(HttpResponse::Ok().json(Validation { valid: true, ..Validation::default() }));
    }
    let args = RawJson::of(&json!({"kind": job.kind, "args": job.args})).map_err(|error| Problem::internal(&error))?;
    let look = NewJob {
        target: job.target,
        queue: job.queue,
        priority: 0,
        timeout_ms: TIMEOUT_MS,
        ..NewJob::new(VALIDATE, args)
    };
    let (look, _) = accepted(&shared, Accept::new(look), None).await?;
    let wait = prefer_wait(&request).unwrap_or(WAIT);
    let until = tokio::time::Instant::now() + wait;
    shared.waiters.wait(look.id, until, |mark| mark.state.is_final()).await;
    let look = jobs::read(&shared, look.id).await.unwrap_or(look);
    match (look.state, &look.output) {
        (JobState::Succeeded, Some(report)) => Ok(HttpResponse::Ok().json(report)),
        (state, _) if state.is_final() => Err(not_looked_at(&look)),
        _ => Ok(HttpResponse::Accepted()
            .insert_header((actix_web::http::header::LOCATION, wire::path(look.id)))
            .insert_header((actix_web::http::header::RETRY_AFTER, jobs::retry_after(&look).to_string()))
            .json(JobResource::of(&look, false))),
    }
}

fn not_looked_at(look: &Job) -> Problem {
    let error = look.error.as_ref().and_then(|error| serde_json::from_str::<JobError>(error.text()).ok());
    let why = error.map_or_else(|| "it was cancelled".to_owned(), |error| error.message);
    Problem::new(Code::JobFailed, format!("the target could not be asked: {why}"))
        .hint("this says nothing about the job itself; try again")
        .header(actix_web::http::header::LOCATION, wire::path(look.id))
}
