//! `POST /v1/jobs`: a request is checked as a whole, and becomes a committed row before anybody is told `202`.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::db::time_zone;
use crate::http::headers::{coding_not_taken, content_coding, idempotency, prefer_wait};
use crate::http::jobs::{self, retry_after};
use crate::http::problem::{Code, FieldError, Problem, warn_of_outage};
use crate::http::strict_json::{self, Kind, Members};
use crate::http::wire::{self, JobResource};
use crate::http::{MAX_BODY_BYTES, Shared, State};
use crate::kinds::{Named, ON_STATEMENTS_ONLY, Registry, UploadArg};
use crate::queue::accept::{Accept, AcceptError, Accepted};
use crate::queue::job::{
    DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RESULT_TTL_MS, DEFAULT_TIMEOUT_MS, MAX_LABEL_CHARS, MAX_LABELS,
    MAX_LOCK_TIMEOUT_MS, MAX_MAX_ATTEMPTS, MAX_PRIORITY, MAX_RESULT_TTL_MS, MAX_TIMEOUT_MS,
};
use crate::queue::pointer::step;
use crate::queue::{Job, NewJob, RawJson};
use crate::uploads::store;

/// Fields of the contract whose features aren't there.
const NOT_SUPPORTED_YET: [&str; 3] = ["unique_key", "concurrency_key", "webhook"];
const FIELDS: [&str; 12] = [
    "kind",
    "args",
    "target",
    "queue",
    "priority",
    "run_at",
    "timeout_ms",
    "max_attempts",
    "labels",
    "result_ttl_ms",
    "time_zone",
    "lock_timeout_ms",
];

pub(super) async fn submit(
    request: HttpRequest,
    shared: State,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    check_is_json(&request)?;
    let body = body.map_err(|error| unreadable(&error))?;
    let members = strict_json::object(&body)?;
    let (job, upload) = new_job(&shared, &members)?;
    let idempotency = idempotency(&request, fingerprint(&request, &body))?;
    accept(&request, &shared, Accept { idempotency, ..Accept::new(job) }, upload).await
}

/// Makes a job a committed row, and answers with it.
pub(super) async fn accept(
    request: &HttpRequest,
    shared: &Shared,
    accept: Accept,
    upload: Option<UploadArg>,
) -> Result<HttpResponse, Problem> {
    let (job, replayed) = accepted(shared, accept, upload).await?;
    answer(shared, job, replayed, prefer_wait(request)).await
}

/// Makes a job a committed row, together with its hold on the upload that it reads. Says whether it was one already.
pub(super) async fn accepted(
    shared: &Shared,
    accept: Accept,
    upload: Option<UploadArg>,
) -> Result<(Job, bool), Problem> {
    check_result_store(shared, &accept.job)?;
    check_upload(shared, upload).await?;
    let job = NewJob { upload: upload.map(|upload| upload.id), ..accept.job };
    let accept = Accept { job, ..accept };
    let accepted = shared.writer.accept(accept).await.map_err(|error| match (error, upload) {
        (AcceptError::NoUpload, Some(upload)) => {
            Problem::new(Code::UnknownUpload, format!("there is no upload {}, or its time has passed", upload.id))
                .field(format!("/args{}", upload.pointer), "expected the id of an upload that is ready")
        }
        (error, _) => not_accepted(error),
    })?;
    Ok(match accepted {
        Accepted::Created(job) => {
            shared.metrics.accepted(&job.kind);
            log::debug!(job = job.id.to_string(), kind = job.kind.as_str(); "accepted a job");
            (job, false)
        }
        Accepted::Replayed(job) => (job, true),
    })
}

pub(super) fn refuse_when_stopping(shared: &Shared) -> Result<(), Problem> {
    match shared.health.is_stopping() {
        true => {
            Err(Problem::new(Code::ShuttingDown, "this server is shutting down; try again, another one may answer"))
        }
        false => Ok(()),
    }
}

/// A body is JSON, uncoded, and says so.
pub(super) fn check_is_json(request: &HttpRequest) -> Result<(), Problem> {
    let coding = content_coding(request);
    if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
        return Err(coding_not_taken(&coding, "identity").hint("send the JSON as it is, without Content-Encoding"));
    }
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "the body must be JSON and say so")
        .field("Content-Type", "expected application/json"))
}

pub(super) fn unreadable(error: &actix_web::Error) -> Problem {
    if error.as_response_error().status_code() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(Code::BodyTooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes"))
            .field("", format!("expected at most {MAX_BODY_BYTES} bytes"))
    } else {
        Problem::new(Code::MalformedRequest, "the body did not arrive whole")
    }
}

pub(super) fn fingerprint(request: &HttpRequest, body: &[u8]) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update(format!("{} {}\n", request.method(), request.path()));
    digest.update(body);
    digest.finalize().to_vec()
}

fn check_result_store(shared: &Shared, job: &NewJob) -> Result<(), Problem> {
    let full = shared.metrics.result_store_bytes() >= shared.settings.result_store_bytes;
    if full && shared.registry.produces_result(&job.kind, &job.args.0) {
        return Err(Problem::new(Code::ResultStoreFull, "there is no room for another result")
            .hint("delete results that are no longer needed, or raise result_store_bytes"));
    }
    Ok(())
}

/// The upload is what the arguments say. Whether it is there is left to the statement that takes hold of it; its type
/// never changes.
pub(super) async fn check_upload(shared: &Shared, upload: Option<UploadArg>) -> Result<(), Problem> {
    let Some(UploadArg { id, reads: Some(reads), .. }) = upload else { return Ok(()) };
    let found = shared.doorway.run(move |connection| store::content_type(connection, id)).await?;
    let Some(found) = found.filter(|found| !reads.types.contains(found)) else { return Ok(()) };
    let sent = found.as_str();
    Err(Problem::new(
        Code::FormatMismatch,
        format!("the upload {id} was sent as {sent}, and the arguments say otherwise"),
    )
    .field(format!("/args{}", reads.pointer), format!("expected the value for {sent}, which the upload is"))
    .hint("name what the upload is, or send the file again with the Content-Type that it has"))
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

async fn answer(shared: &Shared, job: Job, replayed: bool, wait: Option<Duration>) -> Result<HttpResponse, Problem> {
    let mut job = job;
    let mut applied = None;
    if let Some(wait) = wait {
        let until = tokio::time::Instant::now() + wait;
        let waited = match job.state.is_final() {
            true => Some(true),
            false => shared.waiters.wait(job.id, until, |mark| mark.state.is_final()).await,
        };
        // The job is accepted, whatever comes of this read: a failure here must not look like a refusal.
        if waited.is_some()
            && let Ok(ended) = jobs::read(shared, job.id).await
        {
            job = ended;
        }
        applied = waited.map(|_| wait);
    }
    let done = applied.is_some() && job.state.is_final();
    let mut response = HttpResponse::build(if done { StatusCode::OK } else { StatusCode::ACCEPTED });
    response.insert_header((header::LOCATION, wire::path(job.id)));
    if !job.state.is_final() {
        response.insert_header((header::RETRY_AFTER, retry_after(&job).to_string()));
    }
    if let Some(wait) = applied {
        response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
    }
    if replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    response.insert_header((header::ETAG, wire::etag(&job)));
    Ok(response.json(JobResource::of(&job, shared.registry.produces_result(&job.kind, &job.args.0))))
}

/// The job that a request asks for, checked, and the upload that it reads.
pub(super) fn new_job(shared: &Shared, members: &Members<'_>) -> Result<(NewJob, Option<UploadArg>), Problem> {
    for field in NOT_SUPPORTED_YET {
        if members.contains_key(field) {
            return Err(Problem::new(Code::NotSupportedYet, format!("{field} is not supported yet"))
                .field(format!("/{field}"), "expected no such field"));
        }
    }
    let mut fields = Fields { members, errors: Vec::new() };
    fields.refuse_unknown();
    let (job, named) = fields.read(&shared.registry);
    let Fields { errors, .. } = fields;
    if !errors.is_empty() {
        return Err(Problem::new(Code::InvalidRequest, "the request has fields that are not valid").fields(errors));
    }
    check_names(shared, &job)?;
    check_statement(&job, &named)?;
    let upload = shared.registry.check_as(&named, &job.kind, &job.args.0).map_err(|refused| {
        let errors = refused.errors.into_iter();
        let errors = errors.map(|e| FieldError { pointer: format!("/args{}", e.pointer), detail: e.detail }).collect();
        Problem::new(Code::InvalidArgs, format!("the arguments are not valid for {}", job.kind)).fields(errors)
    })?;
    Ok((job, upload))
}

pub(super) fn check_names(shared: &Shared, job: &NewJob) -> Result<(), Problem> {
    let unknown = |code: Code, field: &str, known: Vec<String>| {
        Err(Problem::new(code, format!("there is no such {field} here"))
            .field(format!("/{field}"), format!("expected one of: {}", known.join(", "))))
    };
    if !shared.registry.contains(&job.kind) {
        let known = shared.registry.names().into_iter().map(str::to_owned).collect();
        return unknown(Code::UnknownKind, "kind", known);
    }
    let Some(target) = shared.targets.get(&job.target) else {
        return unknown(Code::UnknownTarget, "target", shared.targets.keys().cloned().collect());
    };
    if !shared.queues.contains(&job.queue) {
        return unknown(Code::UnknownQueue, "queue", shared.queues.clone());
    }
    if target.statements_only && !ON_STATEMENTS_ONLY.contains(&job.kind.as_str()) {
        let detail = format!("the target {} runs saved statements only", job.target);
        return Err(Problem::new(Code::StatementsOnly, detail)
            .field("/kind", "expected statement")
            .hint("GET /v1/statements lists what can be run"));
    }
    Ok(())
}

/// The one field that a body may have, a text; no body, no field and `null` are none.
pub(super) fn only_text(
    request: &HttpRequest,
    body: &[u8],
    field: &str,
    fits: impl Fn(&str) -> bool,
    expected: &str,
) -> Result<Option<String>, Problem> {
    if body.is_empty() {
        return Ok(None);
    }
    check_is_json(request)?;
    let mut errors = Vec::new();
    let mut given = None;
    for (name, value) in strict_json::object(body)? {
        let text: Option<Option<String>> = serde_json::from_str(value.get()).ok();
        let detail = match text {
            _ if name != field => format!("unknown field; expected one of: {field}"),
            Some(text) if text.as_deref().is_none_or(&fits) => {
                given = text;
                continue;
            }
            _ => expected.to_owned(),
        };
        errors.push(FieldError { pointer: step(&name), detail });
    }
    if errors.is_empty() {
        return Ok(given);
    }
    Err(Problem::new(Code::InvalidRequest, "the request has fields that are not valid").fields(errors))
}

/// What a saved statement says of the job that runs it: there is one, it runs on its own target, and no longer than it
/// may.
pub(super) fn check_statement(job: &NewJob, named: &Named) -> Result<(), Problem> {
    if let Named::Unknown(name, refused) = named {
        let expected = refused.errors.first().map_or_else(String::new, |error| error.detail.clone());
        return Err(Problem::new(Code::UnknownStatement, format!("there is no saved statement {name}"))
            .field("/args/name", expected)
            .hint("a file that can't be used is listed as broken by GET /v1/statements"));
    }
    let Some(statement) = named.statement() else { return Ok(()) };
    let mut errors = Vec::new();
    let mut wrong = |pointer: &str, detail: String| errors.push(FieldError { pointer: pointer.to_owned(), detail });
    if job.target != statement.target {
        wrong(
            "/target",
            format!("expected {}, on which this saved statement runs, or no such field", statement.target),
        );
    }
    if job.timeout_ms > statement.timeout_ms {
        wrong("/timeout_ms", format!("expected at most {}, which this saved statement may take", statement.timeout_ms));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Problem::new(Code::InvalidRequest, "the saved statement doesn't allow it").fields(errors))
}

/// Reads fields one by one, and gathers everything that is wrong with them.
struct Fields<'m, 'b> {
    members: &'m Members<'b>,
    errors: Vec<FieldError>,
}

impl<'b> Fields<'_, 'b> {
    /// The job, and its saved statement: looked up once, so that all that is checked is checked against one state of
    /// the set.
    fn read(&mut self, registry: &Registry) -> (NewJob, Named) {
        let (kind, args) = (self.kind(), self.args());
        let named = registry.named(&kind, &args.0);
        // It has defaults of its own.
        let statement = named.statement();
        let job = NewJob {
            target: self.name("target", statement.map(|statement| statement.target.as_str())),
            queue: self.name("queue", statement.map(|statement| statement.queue.as_str())),
            priority: self.integer("priority", DEFAULT_PRIORITY, 0, MAX_PRIORITY),
            run_at: self.time("run_at"),
            timeout_ms: self.integer(
                "timeout_ms",
                statement.map_or(DEFAULT_TIMEOUT_MS, |statement| statement.timeout_ms),
                1,
                MAX_TIMEOUT_MS,
            ),
            max_attempts: self.integer("max_attempts", DEFAULT_MAX_ATTEMPTS, 1, MAX_MAX_ATTEMPTS),
            labels: self.labels(),
            result_ttl_ms: self.integer("result_ttl_ms", DEFAULT_RESULT_TTL_MS, 1, MAX_RESULT_TTL_MS),
            time_zone: self.time_zone("time_zone"),
            lock_timeout_ms: self
                .member("lock_timeout_ms")
                .map(|_| self.integer("lock_timeout_ms", MAX_LOCK_TIMEOUT_MS, 1, MAX_LOCK_TIMEOUT_MS)),
            // The kind says it, once the arguments are known to be right.
            upload: None,
            kind,
            args,
        };
        (job, named)
    }

    fn refuse_unknown(&mut self) {
        for name in self.members.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
            let detail = format!("unknown field; expected one of: {}", FIELDS.join(", "));
            self.errors.push(FieldError { pointer: step(name), detail });
        }
    }

    /// A member; one that is null counts as absent.
    fn member(&self, name: &str) -> Option<&'b RawValue> {
        self.members.get(name).copied().filter(|value| strict_json::kind(value) != Kind::Null)
    }

    fn wrong(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: format!("/{name}"), detail: detail.into() });
    }

    fn kind(&mut self) -> String {
        match self.member("kind") {
            Some(value) => self.string("kind", value).unwrap_or_default(),
            None => {
                self.wrong("kind", "expected the name of a kind of work");
                String::new()
            }
        }
    }

    fn args(&mut self) -> RawJson {
        let value = self.member("args");
        if value.is_some_and(|value| strict_json::kind(value) != Kind::Object) {
            self.wrong("args", "expected an object");
        }
        match value {
            Some(value) => RawJson(value.to_owned()),
            None => RawJson(RawValue::from_string("{}".to_owned()).unwrap_or_default()),
        }
    }

    fn name(&mut self, field: &str, default: Option<&str>) -> String {
        match self.member(field) {
            Some(value) => self.string(field, value).unwrap_or_default(),
            None => default.unwrap_or("default").to_owned(),
        }
    }

    fn string(&mut self, field: &str, value: &RawValue) -> Option<String> {
        let text = serde_json::from_str(value.get()).ok();
        if text.is_none() {
            self.wrong(field, "expected a string");
        }
        text
    }

    fn integer<T>(&mut self, field: &str, default: T, least: T, most: T) -> T
    where
        T: std::str::FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let Some(value) = self.member(field) else {
            return default;
        };
        match value.get().parse::<T>() {
            Ok(number) if number >= least && number <= most => number,
            _ => {
                self.wrong(field, format!("expected an integer from {least} to {most}"));
                default
            }
        }
    }

    fn time(&mut self, field: &str) -> Option<DateTime<Utc>> {
        let value = self.member(field)?;
        let text: Option<String> = serde_json::from_str(value.get()).ok();
        let time = text.and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
        if time.is_none() {
            self.wrong(field, "expected a time as RFC 3339 writes it, such as 2026-01-31T06:00:00Z");
        }
        time.map(|time| time.to_utc())
    }

    /// Whether there is such a zone, the target's server says when the job runs.
    fn time_zone(&mut self, field: &str) -> Option<String> {
        let value = self.member(field)?;
        let zone = serde_json::from_str::<String>(value.get()).ok().filter(|text| time_zone::is_name(text));
        if zone.is_none() {
            self.wrong(field, format!("expected {}", time_zone::EXPECTED));
        }
        zone
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let Some(value) = self.member("labels") else {
            return BTreeMap::new();
        };
        let Ok(labels) = serde_json::from_str::<BTreeMap<String, String>>(value.get()) else {
            self.wrong("labels", "expected an object whose values are strings");
            return BTreeMap::new();
        };
        if labels.len() > MAX_LABELS {
            self.wrong("labels", format!("expected at most {MAX_LABELS} labels"));
        }
        for (name, text) in &labels {
            let fits = |text: &str| text.chars().count() <= MAX_LABEL_CHARS;
            if name.is_empty() || !fits(name) || !fits(text) {
                let detail =
                    format!("expected names of 1 to {MAX_LABEL_CHARS} characters and values of at most as many");
                self.wrong(&format!("labels{}", step(name)), detail);
            }
        }
        labels
    }
}
