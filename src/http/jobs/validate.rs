//! `POST /v1/jobs/validate`: what a job would meet, without running it.
//!
//! The request is checked as `POST /v1/jobs` checks it. What only the target knows is asked by a job of the kind
//! `validate`, because only workers can reach a target: it goes before other jobs, and is waited for.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use crate::http::State;
use crate::http::extract::body::{check_is_json, unreadable};
use crate::http::extract::refuse_when_stopping;
use crate::http::extract::{principal, strict_json};
use crate::http::jobs::asked::{Asked, asked_for, check_upload};
use crate::http::jobs::asking::ask_a_worker;
use crate::http::problem::Problem;
use crate::queue::{JobSpec, RawJson};
use crate::work::{VALIDATE, Validation};

pub(in crate::http) async fn validate(
    request: HttpRequest,
    shared: State,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    check_is_json(&request)?;
    let body = body.map_err(|error| unreadable(&error))?;
    let Asked { spec: job, runs, upload, .. } = asked_for(&shared, principal(&request)?, &strict_json::object(&body)?)?;
    check_upload(&shared, upload).await?;
    if !runs.validates() || !shared.registry.contains(VALIDATE) {
        // Its arguments are right; there is nothing more that could be said without running it.
        return Ok(HttpResponse::Ok().json(Validation { valid: true, ..Validation::default() }));
    }
    let args = RawJson::of(&json!({"kind": job.kind, "args": job.args})).map_err(|error| Problem::internal(&error))?;
    let look = JobSpec {
        target: job.target,
        queue: job.queue,
        time_zone: job.time_zone,
        lock_timeout_ms: job.lock_timeout_ms,
        ..JobSpec::new(VALIDATE, args)
    };
    ask_a_worker(&request, &shared, look, "this says nothing about the job itself; try again").await
}
