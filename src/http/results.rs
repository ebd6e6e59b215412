//! `GET …/result`, `GET …/result/data` and `DELETE …/result`: what is asked for, and whether it is there.

use std::ops::Range;

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use crate::http::extract::headers::if_none_match;
use crate::http::extract::parse_id;
use crate::http::jobs::one::{self, retry_after, until_it_may_begin};
use crate::http::jobs::wire::{self, Time};
use crate::http::problem::{Code, Problem};
use crate::http::{Shared, State};
use crate::queue::model::ResultState;
use crate::queue::{Job, JobState};
use crate::results::store::{self, StoredResult};
use crate::results::{Column, Format, Representation};

mod body;
mod negotiate;
mod sending;

use negotiate::{Coding, content_coding, representation};
use sending::Sending;

#[derive(Serialize)]
struct ManifestResource<'m> {
    job_id: Uuid,
    columns: &'m [Column],
    rows: i64,
    bytes: i64,
    truncated: bool,
    expires_at: Time,
    sha256: &'m str,
    formats: Vec<FormatResource>,
}

#[derive(Serialize)]
struct FormatResource {
    format: Format,
    content_type: &'static str,
    bytes: u64,
    etag: String,
    href: String,
}

/// The result of a job that has ended well; `None` for one of a kind that makes none.
async fn find(shared: &Shared, id: Uuid) -> Result<Option<StoredResult>, Problem> {
    let job = one::read(shared, id).await?;
    let stored = shared.doorway.run(move |connection| store::result(connection, id)).await?;
    match (job.status.state, stored) {
        (_, Some(stored)) if stored.state == ResultState::Available => Ok(Some(stored)),
        (_, Some(stored)) if stored.state == ResultState::Expired => {
            Err(Problem::new(Code::ResultExpired, "the result was kept for result_ttl_ms, and is gone"))
        }
        (_, Some(_)) => Err(Problem::new(Code::ResultDeleted, "the result was deleted on request")),
        (JobState::Failed, None) => {
            Err(Problem::new(Code::JobFailed, "the job failed; its error says why")
                .hint(format!("see {}", wire::path(id))))
        }
        (JobState::Cancelled, None) => Err(Problem::new(Code::JobCancelled, "the job was cancelled")),
        (JobState::Succeeded, None) => Ok(None),
        (state, None) => Err(not_ready(&job, state)),
    }
}

/// An error, so that a client that stores what it is sent (`curl -f > report.csv`) stores nothing yet.
fn not_ready(job: &Job, state: JobState) -> Problem {
    let path = wire::path(job.id);
    let hint = match state {
        JobState::Paused => format!("POST {path}/resume lets the job go on"),
        JobState::Scheduled if until_it_may_begin(job) > 0 => {
            let at = job.status.run_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            format!("the job begins at {at} (run_at), not before")
        }
        _ => {
            format!("ask again after the seconds of Retry-After, or GET {path} with Prefer: wait=30 until it has ended")
        }
    };
    Problem::new(Code::ResultNotReady, format!("the job is {state}: its result is there when it has succeeded"))
        .hint(hint)
        .header(header::LOCATION, path)
        .header(header::RETRY_AFTER, retry_after(job).to_string())
}

pub(super) async fn manifest(shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let Some(stored) = find(&shared, id).await? else { return Ok(HttpResponse::NoContent().finish()) };
    let manifest = &stored.manifest;
    let formats = Format::ALL.map(|format| (format, Representation::from(format)));
    let formats = formats.into_iter().map(|(format, representation)| FormatResource {
        format,
        content_type: representation.content_type(),
        bytes: manifest.length(representation),
        etag: manifest.etag(representation),
        href: format!("{}/result/data?format={}", wire::path(id), format.as_str()),
    });
    Ok(HttpResponse::Ok().json(ManifestResource {
        job_id: id,
        columns: &manifest.columns,
        rows: manifest.rows,
        bytes: manifest.bytes,
        truncated: manifest.truncated,
        expires_at: Time(stored.expires_at),
        sha256: &manifest.sha256,
        formats: formats.collect(),
    }))
}

pub(super) async fn delete(shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let job = one::read(&shared, id).await?;
    if !job.status.state.is_final() {
        return Err(Problem::new(Code::JobNotFinished, "the job has not ended; cancel it first")
            .field("id", "expected a job that has ended"));
    }
    shared.doorway.run(move |connection| store::delete(connection, id)).await?;
    shared.signals.job_changed(id);
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn data(request: HttpRequest, shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    let representation = representation(&request)?;
    let Some(stored) = find(&shared, id).await? else { return Ok(HttpResponse::NoContent().finish()) };
    let length = stored.manifest.length(representation);
    let identity_etag = stored.manifest.etag(representation);
    // A range is for GET alone, and comes after the conditions (RFC 9110, 13.2.2 and 14.2).
    let may_range = request.method() == Method::GET && request.headers().contains_key(header::RANGE);
    let coding = if may_range { Coding::Identity } else { content_coding(&request) };
    let etag = coding.etag(&identity_etag);
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::ETAG, etag.clone()))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::VARY, "Accept, Accept-Encoding"))
        .insert_header((header::CACHE_CONTROL, "private, no-cache"));
    if if_none_match(&request, &etag) {
        return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
    }
    let range = if may_range { negotiate::range(&request, length, &identity_etag)? } else { None };
    response.insert_header((header::CONTENT_TYPE, representation.content_type())).insert_header((
        header::CONTENT_DISPOSITION,
        format!("attachment; filename=\"{id}.{}\"", representation.format.as_str()),
    ));
    if let Some(name) = coding.name() {
        response.insert_header((header::CONTENT_ENCODING, name));
    }
    let wanted = range.clone().unwrap_or(0..length);
    if let Some(Range { start, end }) = range {
        let content_range = format!("bytes {start}-{}/{length}", end.saturating_sub(1));
        response.status(StatusCode::PARTIAL_CONTENT).insert_header((header::CONTENT_RANGE, content_range));
    }
    if coding == Coding::Identity {
        response.no_chunking(wanted.end - wanted.start);
    }
    if request.method() == Method::HEAD {
        return Ok(
            response.body(body::Empty { length: (coding == Coding::Identity).then_some(wanted.end - wanted.start) })
        );
    }
    let exact = (coding == Coding::Identity).then_some(wanted.end - wanted.start);
    let stream = Sending::new(shared, id, stored, representation, wanted).start(coding);
    Ok(response.body(body::Streamed { stream, length: exact }))
}
