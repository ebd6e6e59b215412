//! What only a worker can answer, because only workers reach targets: asked by a job that goes before others, and
//! waited for.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse};

use crate::http::Shared;
use crate::http::extract::headers::prefer_wait;
use crate::http::extract::principal;
use crate::http::jobs::asked::Asked;
use crate::http::jobs::one;
use crate::http::jobs::submit::accepted;
use crate::http::jobs::wire::{self, JobResource};
use crate::http::problem::{Code, Problem};
use crate::queue::{Job, JobError, JobSpec, JobState};

/// How long the answer is waited for when the caller doesn't say: 10 s.
const WAIT: Duration = Duration::from_secs(10);
/// How long the job may take, in milliseconds.
const TIMEOUT_MS: i64 = 60_000;

/// Puts a job in before all others of its queue, and answers with its output; 202 and the job when it hasn't ended in
/// time. `hint` says what a failure means.
pub(in crate::http) async fn ask_a_worker(
    request: &HttpRequest,
    shared: &Shared,
    job: JobSpec,
    hint: &str,
) -> Result<HttpResponse, Problem> {
    let job = JobSpec { priority: 0, timeout_ms: TIMEOUT_MS, ..job };
    let runs = shared.registry.resolve(&job.kind, &job.args.0);
    let (job, _) =
        accepted(shared, Asked { principal: principal(request)?, spec: job, runs, upload: None }, |accept| accept)
            .await?;
    let until = tokio::time::Instant::now() + prefer_wait(request).unwrap_or(WAIT);
    shared.waiters.wait(job.id, until, |mark| mark.state.is_final()).await;
    // It is accepted, whatever comes of this read.
    let job = one::read(shared, job.id).await.unwrap_or(job);
    match (job.status.state, &job.outcome.output) {
        (JobState::Succeeded, Some(report)) => Ok(HttpResponse::Ok().json(report)),
        (state, _) if state.is_final() => Err(not_answered(&job, hint)),
        _ => Ok(HttpResponse::Accepted()
            .insert_header((header::LOCATION, wire::path(job.id)))
            .insert_header((header::RETRY_AFTER, one::retry_after(&job).to_string()))
            .json(JobResource::of(&job, false))),
    }
}

fn not_answered(job: &Job, hint: &str) -> Problem {
    let error = job.outcome.error.as_ref().and_then(|error| serde_json::from_str::<JobError>(error.text()).ok());
    let why = error.map_or_else(|| "it was cancelled".to_owned(), |error| error.message);
    Problem::new(Code::JobFailed, format!("the target could not be asked: {why}"))
        .hint(hint)
        .header(header::LOCATION, wire::path(job.id))
}
