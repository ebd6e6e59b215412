//! The job that a request asks for: read field by field, all that is wrong with it told at once, and checked by its kind.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::db::time_zone;
use crate::http::Shared;
use crate::http::extract::strict_json::{self, Kind, Members};
use crate::http::problem::{Code, FieldError, Problem};
use crate::queue::intake::request::Principal;
use crate::queue::model::pointer::step;
use crate::queue::model::{
    DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RESULT_TTL_MS, DEFAULT_TIMEOUT_MS, Labels, MAX_LABEL_CHARS,
    MAX_LABELS, MAX_LOCK_TIMEOUT_MS, MAX_MAX_ATTEMPTS, MAX_PRIORITY, MAX_RESULT_TTL_MS, MAX_TIMEOUT_MS, SPEC,
};
use crate::queue::{JobSpec, RawJson};
use crate::uploads::store;
use crate::work::{ON_STATEMENTS_ONLY, Registry, Resolution, UploadArg};

/// Fields of the contract whose features aren't there.
const NOT_SUPPORTED_YET: [&str; 3] = ["unique_key", "concurrency_key", "webhook"];

/// The fields that a body may have: all of a spec but the upload, which is known from the arguments.
fn fields() -> impl Iterator<Item = &'static str> {
    SPEC.iter().copied().filter(|name| *name != "upload")
}

/// A job that a request asks for, checked as a whole.
pub(in crate::http) struct Asked {
    /// Who asks.
    pub principal: Principal,
    /// The job.
    pub spec: JobSpec,
    /// What it runs, looked up once for the request.
    pub runs: Resolution,
    /// The upload that it reads.
    pub upload: Option<UploadArg>,
}

/// The job that a request asks for, checked.
pub(in crate::http) fn asked_for(
    shared: &Shared,
    principal: Principal,
    members: &Members<'_>,
) -> Result<Asked, Problem> {
    for field in NOT_SUPPORTED_YET {
        if members.contains_key(field) {
            return Err(Problem::new(Code::NotSupportedYet, format!("{field} is not supported yet"))
                .field(format!("/{field}"), "expected no such field"));
        }
    }
    let mut fields = Fields { members, errors: Vec::new() };
    fields.refuse_unknown();
    let (job, runs) = fields.read(&shared.registry);
    let Fields { errors, .. } = fields;
    if !errors.is_empty() {
        return Err(Problem::new(Code::InvalidRequest, "the request has fields that are not valid").fields(errors));
    }
    check_names(shared, &job)?;
    check_statement(&job, &runs)?;
    let upload = runs.check(&job.args.0).map_err(|refused| {
        let errors = refused.errors.into_iter();
        let errors = errors.map(|e| FieldError { pointer: format!("/args{}", e.pointer), detail: e.detail }).collect();
        Problem::new(Code::InvalidArgs, format!("the arguments are not valid for {}", job.kind)).fields(errors)
    })?;
    Ok(Asked { principal, spec: job, runs, upload })
}

pub(in crate::http) fn check_names(shared: &Shared, job: &JobSpec) -> Result<(), Problem> {
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

/// What a saved statement says of the job that runs it: there is one, it runs on its own target, and no longer than it may.
pub(in crate::http) fn check_statement(job: &JobSpec, runs: &Resolution) -> Result<(), Problem> {
    if let Some((name, refused)) = runs.missing_statement() {
        let expected = refused.errors.first().map_or_else(String::new, |error| error.detail.clone());
        return Err(Problem::new(Code::UnknownStatement, format!("there is no saved statement {name}"))
            .field("/args/name", expected)
            .hint("a file that can't be used is listed as broken by GET /v1/statements"));
    }
    let Some(statement) = runs.statement() else { return Ok(()) };
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

/// The upload is what the arguments say. Whether it is there is left to the statement that takes hold of it; its type
/// never changes.
pub(in crate::http) async fn check_upload(shared: &Shared, upload: Option<UploadArg>) -> Result<(), Problem> {
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

/// Reads fields one by one, and gathers everything that is wrong with them.
struct Fields<'m, 'b> {
    members: &'m Members<'b>,
    errors: Vec<FieldError>,
}

impl<'b> Fields<'_, 'b> {
    /// The job, and what it runs.
    fn read(&mut self, registry: &Registry) -> (JobSpec, Resolution) {
        let (kind, args) = (self.kind(), self.args());
        let runs = registry.resolve(&kind, &args.0);
        // It has defaults of its own.
        let statement = runs.statement();
        let job = JobSpec {
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
        (job, runs)
    }

    fn refuse_unknown(&mut self) {
        for name in self.members.keys().filter(|name| !fields().any(|field| field == name.as_str())) {
            let known: Vec<&str> = fields().collect();
            let detail = format!("unknown field; expected one of: {}", known.join(", "));
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
            None => RawJson::empty_object(),
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

    fn labels(&mut self) -> Labels {
        let Some(value) = self.member("labels") else {
            return Labels::default();
        };
        let Ok(labels) = serde_json::from_str::<Labels>(value.get()) else {
            self.wrong("labels", "expected an object whose values are strings");
            return Labels::default();
        };
        if labels.len() > MAX_LABELS {
            self.wrong("labels", format!("expected at most {MAX_LABELS} labels"));
        }
        for (name, text) in labels.iter() {
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
