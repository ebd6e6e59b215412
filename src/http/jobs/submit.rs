//! `POST /v1/jobs`: a request is checked as a whole, and becomes a committed row before anybody is told `202`.

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use sha2::{Digest, Sha256};

use crate::http::extract::body::{check_is_json, unreadable};
use crate::http::extract::headers::{idempotency, prefer_wait};
use crate::http::extract::refuse_when_stopping;
use crate::http::extract::{principal, strict_json};
use crate::http::jobs::asked::{Asked, asked_for, check_upload};
use crate::http::jobs::one::{self, retry_after};
use crate::http::jobs::wire::{self, JobResource};
use crate::http::problem::{Code, Problem, warn_of_outage};
use crate::http::{Shared, State};
use crate::queue::intake::request::{AcceptError, Accepted, Submission};
use crate::queue::{Job, JobSpec};
use crate::work::Resolution;

pub(in crate::http) async fn submit(
    request: HttpRequest,
    shared: State,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    check_is_json(&request)?;
    let body = body.map_err(|error| unreadable(&error))?;
    let members = strict_json::object(&body)?;
    let asked = asked_for(&shared, principal(&request)?, &members)?;
    let idempotency = idempotency(&request, fingerprint(&request, &body))?;
    accept(&request, &shared, asked, |accept| Submission { idempotency, ..accept }).await
}

/// Makes a job a committed row, and answers with it. `further` adds what isn't the job's own: a key, what it is a retry of.
pub(in crate::http) async fn accept(
    request: &HttpRequest,
    shared: &Shared,
    asked: Asked,
    further: impl FnOnce(Submission) -> Submission,
) -> Result<HttpResponse, Problem> {
    let produces_result = asked.runs.produces_result();
    let (job, replayed) = accepted(shared, asked, further).await?;
    let answer = Answer { job, replayed, produces_result };
    answer.send(shared, prefer_wait(request)).await
}

/// Makes a job a committed row, together with its hold on the upload that it reads. Says whether it was one already.
pub(in crate::http) async fn accepted(
    shared: &Shared,
    asked: Asked,
    further: impl FnOnce(Submission) -> Submission,
) -> Result<(Job, bool), Problem> {
    let Asked { principal, spec, runs, upload } = asked;
    check_result_store(shared, &runs)?;
    check_upload(shared, upload).await?;
    let spec = JobSpec { upload: upload.map(|upload| upload.id), ..spec };
    let accepted = shared.writer.accept(further(Submission::new(principal, spec))).await.map_err(|error| {
        match (error, upload) {
            (AcceptError::NoUpload, Some(upload)) => {
                Problem::new(Code::UnknownUpload, format!("there is no upload {}, or its time has passed", upload.id))
                    .field(format!("/args{}", upload.pointer), "expected the id of an upload that is ready")
            }
            (error, _) => not_accepted(error),
        }
    })?;
    Ok(match accepted {
        Accepted::Created(job) => {
            shared.metrics.accepted(&job.spec.kind);
            log::debug!(job = job.id.to_string(), kind = job.spec.kind.as_str(); "accepted a job");
            (job, false)
        }
        Accepted::Replayed(job) => (job, true),
    })
}

pub(in crate::http) fn fingerprint(request: &HttpRequest, body: &[u8]) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update(format!("{} {}\n", request.method(), request.path()));
    digest.update(body);
    digest.finalize().to_vec()
}

fn check_result_store(shared: &Shared, runs: &Resolution) -> Result<(), Problem> {
    let full = shared.metrics.result_store_bytes() >= shared.settings.result_store_bytes;
    if full && runs.produces_result() {
        return Err(Problem::new(Code::ResultStoreFull, "there is no room for another result")
            .hint("delete results that are no longer needed, or raise result_store_bytes"));
    }
    Ok(())
}

fn not_accepted(error: AcceptError) -> Problem {
    match error {
        AcceptError::Busy => Problem::new(Code::Busy, "too many requests wait to be written; try again shortly"),
        AcceptError::Unavailable(reason) => {
            warn_of_outage("a job was not accepted because the database is unavailable", &reason);
            Problem::new(Code::DatabaseUnavailable, "the database can't be reached; the job was not accepted")
        }
        AcceptError::OutcomeUnknown(id) => {
            Problem::new(Code::OutcomeUnknown, "the connection to the database was lost in the commit")
                .hint("look at Location, or repeat the request with the same Idempotency-Key")
                .header(header::LOCATION, wire::path(id))
        }
        AcceptError::KeyReused => {
            Problem::new(Code::IdempotencyKeyReused, "this key was used for a request with another body")
                .field("Idempotency-Key", "expected a new key, or the same request as before")
        }
        AcceptError::NoUpload => Problem::new(Code::UnknownUpload, "the upload is not there"),
        AcceptError::RetryUnfinished => {
            Problem::new(Code::RetryUnfinished, "this job has a retry that has not ended yet")
                .hint("wait for that one, or cancel it first")
        }
        AcceptError::ClockDifference => {
            Problem::new(Code::ClockDifference, "this process' clock is more than a day off the database's")
                .hint("set both clocks by NTP")
        }
        AcceptError::Failed(cause) => Problem::internal(&cause),
    }
}

/// What is said of a job that is a committed row.
struct Answer {
    job: Job,
    /// It was one already.
    replayed: bool,
    produces_result: bool,
}

impl Answer {
    async fn send(self, shared: &Shared, wait: Option<Duration>) -> Result<HttpResponse, Problem> {
        let Answer { mut job, replayed, produces_result } = self;
        let mut applied = None;
        if let Some(wait) = wait {
            let until = tokio::time::Instant::now() + wait;
            let waited = match job.status.state.is_final() {
                true => Some(true),
                false => shared.waiters.wait(job.id, until, |mark| mark.state.is_final()).await,
            };
            // The job is accepted, whatever comes of this read: a failure here must not look like a refusal.
            if waited.is_some()
                && let Ok(ended) = one::read(shared, job.id).await
            {
                job = ended;
            }
            applied = waited.map(|_| wait);
        }
        let done = applied.is_some() && job.status.state.is_final();
        let mut response = HttpResponse::build(if done { StatusCode::OK } else { StatusCode::ACCEPTED });
        response.insert_header((header::LOCATION, wire::path(job.id)));
        if !job.status.state.is_final() {
            response.insert_header((header::RETRY_AFTER, retry_after(&job).to_string()));
        }
        if let Some(wait) = applied {
            response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
        }
        if replayed {
            response.insert_header(("Idempotency-Replayed", "true"));
        }
        response.insert_header((header::ETAG, wire::etag(&job)));
        Ok(response.json(JobResource::of(&job, produces_result)))
    }
}
