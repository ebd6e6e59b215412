//! `GET /v1/jobs/{id}/attempts`, `GET /v1/jobs/{id}/log` and `POST /v1/jobs/{id}/retry`: what became of a job so far,
//! and doing it again.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use crate::http::extract::body::{no_fields, unreadable};
use crate::http::extract::headers::idempotency;
use crate::http::extract::paging::{Paging, invalid};
use crate::http::extract::parse_id;
use crate::http::extract::principal;
use crate::http::extract::refuse_when_stopping;
use crate::http::jobs::asked::{Asked, check_names, check_statement};
use crate::http::jobs::one as jobs;
use crate::http::jobs::submit::{accept, fingerprint};
use crate::http::jobs::wire::{self, Time};
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State};
use crate::queue::RawJson;
use crate::queue::intake::request::{Principal, Submission};
use crate::queue::intake::retry::{self, RetryOf};
use crate::queue::record::attempts::{self, Attempt};
use crate::queue::record::log::{self, StoredLine};

#[derive(Serialize)]
struct AttemptsPage<'a> {
    attempts: Vec<AttemptResource<'a>>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct AttemptResource<'a> {
    lease: i64,
    attempt: i32,
    outcome: Option<&'a str>,
    started_at: Time,
    finished_at: Option<Time>,
    worker_id: Uuid,
    backend_pid: Option<i32>,
    error: Option<&'a RawJson>,
    statement_version: Option<&'a str>,
}

impl<'a> From<&'a Attempt> for AttemptResource<'a> {
    fn from(attempt: &'a Attempt) -> AttemptResource<'a> {
        AttemptResource {
            lease: attempt.lease,
            attempt: attempt.attempt,
            outcome: attempt.outcome.as_deref(),
            started_at: Time(attempt.started_at),
            finished_at: attempt.finished_at.map(Time),
            worker_id: attempt.worker_id,
            backend_pid: attempt.backend_pid,
            error: attempt.error.as_ref(),
            statement_version: attempt.statement_version.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct LogPage<'l> {
    lines: Vec<LineResource<'l>>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct LineResource<'l> {
    lease: i64,
    n: i32,
    at: Time,
    level: &'l str,
    source: &'l str,
    sqlstate: Option<&'l str>,
    message: &'l str,
}

impl<'l> From<&'l StoredLine> for LineResource<'l> {
    fn from(line: &'l StoredLine) -> LineResource<'l> {
        LineResource {
            lease: line.lease,
            n: line.n,
            at: Time(line.at),
            level: &line.level,
            source: &line.source,
            sqlstate: line.sqlstate.as_deref(),
            message: &line.message,
        }
    }
}

/// A list of a job that knows no filters.
fn paging(request: &HttpRequest, id: Uuid, what: &str) -> Result<Paging, Problem> {
    Paging::read(request.query_string(), &format!("{what} of {id}"), |name, _| {
        Err(invalid(name, "unknown parameter; expected one of: limit, cursor"))
    })
}

pub(in crate::http) async fn attempts(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let paging = paging(&request, id, "attempts")?;
    jobs::read(&shared, id).await?;
    let (behind, limit) = (paging.behind.map_or(-1, |place| place_of(place).0), paging.limit + 1);
    let found = shared.doorway.run(move |connection| attempts::page(connection, id, behind, limit)).await?;
    let (page, more) = paging.cut(&found);
    let mut response = HttpResponse::Ok();
    let next_cursor = page
        .last()
        .filter(|_| more)
        .map(|last| paging.next(&mut response, &format!("{}/attempts", wire::path(id)), place(last.lease, 0)));
    Ok(response.json(AttemptsPage { attempts: page.iter().map(AttemptResource::from).collect(), next_cursor }))
}

pub(in crate::http) async fn log(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let paging = paging(&request, id, "log")?;
    jobs::read(&shared, id).await?;
    let (behind, limit) = (paging.behind.map_or((-1, -1), place_of), paging.limit + 1);
    let found = shared.doorway.run(move |connection| log::page(connection, id, behind, limit)).await?;
    let (page, more) = paging.cut(&found);
    let mut response = HttpResponse::Ok();
    let next_cursor = page
        .last()
        .filter(|_| more)
        .map(|last| paging.next(&mut response, &format!("{}/log", wire::path(id)), place(last.lease, last.n)));
    Ok(response.json(LogPage { lines: page.iter().map(LineResource::from).collect(), next_cursor }))
}

/// A lease and a number within it, as a cursor holds them.
fn place(lease: i64, n: i32) -> Uuid {
    Uuid::from_u64_pair(u64::try_from(lease).unwrap_or(0), u64::try_from(n).unwrap_or(0))
}

fn place_of(place: Uuid) -> (i64, i32) {
    let (lease, n) = place.as_u64_pair();
    (i64::try_from(lease).unwrap_or(i64::MAX), i32::try_from(n).unwrap_or(i32::MAX))
}

pub(in crate::http) async fn retry(
    request: HttpRequest,
    shared: State,
    id: web::Path<String>,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    let id = parse_id(&id)?;
    let body = body.map_err(|error| unreadable(&error))?;
    // A retry runs what the job was: nothing of it can be changed.
    no_fields(&request, Ok(body.clone()))?;
    let job = job_to_retry(&shared, principal(&request)?, id).await?;
    let idempotency = idempotency(&request, fingerprint(&request, &body))?;
    let again = |accept| Submission { retry_of: Some(id), idempotency, ..accept };
    match accept(&request, &shared, job, again).await {
        Err(problem) if problem.code == Code::RetryUnfinished => Err(naming_the_unfinished(&shared, id, problem).await),
        answer => answer,
    }
}

async fn job_to_retry(shared: &Shared, principal: Principal, id: Uuid) -> Result<Asked, Problem> {
    let mut job = match shared.doorway.run(move |connection| retry::of(connection, id)).await? {
        RetryOf::Retry(job) => *job,
        // Says 404 in the words of every other route.
        RetryOf::NotFound => return Err(jobs::not_found(id)),
        RetryOf::NotRetryable(state) => {
            return Err(Problem::new(Code::NotRetryable, format!("the job is {state}"))
                .field("id", "expected a job that has failed or was cancelled"));
        }
    };
    // What this process no longer knows can't run again.
    check_names(shared, &job)?;
    // Nor can its caller ask for less time than it had, when its saved statement has less by now.
    let runs = shared.registry.resolve(&job.kind, &job.args.0);
    if let Some(statement) = runs.statement() {
        job.timeout_ms = job.timeout_ms.min(statement.timeout_ms);
    }
    check_statement(&job, &runs)?;
    // Arguments that its kind refuses by now are told by the attempt, as they are of a job that came in by SQL.
    let upload = runs.check(&job.args.0).ok().flatten();
    Ok(Asked { principal, spec: job, runs, upload })
}

async fn naming_the_unfinished(shared: &Shared, id: Uuid, problem: Problem) -> Problem {
    match shared.doorway.run(move |connection| retry::unfinished(connection, id)).await {
        Ok(Some(retry)) => problem
            .field("id", format!("expected a job without an unfinished retry; see {}", wire::path(retry)))
            .header(header::LOCATION, wire::path(retry)),
        // It has ended just now, or can't be read: the problem says enough.
        _ => problem,
    }
}
