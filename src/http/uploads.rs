//! `POST /v1/uploads` and what becomes of them: `GET /v1/uploads`, `GET` and `DELETE /v1/uploads/{id}`.

use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use uuid::Uuid;

use crate::http::State;
use crate::http::extract::headers::{coding_not_taken, content_coding};
use crate::http::extract::media::MediaType;
use crate::http::extract::paging::{Paging, invalid};
use crate::http::extract::parse_id;
use crate::http::extract::refuse_when_stopping;
use crate::http::jobs::wire::{self, Time};
use crate::http::problem::{Code, Problem};
use crate::results::Format;
use crate::uploads::store::{self, Deleted};
use crate::uploads::{ContentEncoding, ContentType, Upload};

mod receive;

use receive::Declared;

/// A digest of the body as it is sent (RFC 9530).
const CONTENT_DIGEST: &str = "content-digest";

#[derive(Serialize)]
struct UploadResource<'u> {
    id: Uuid,
    state: &'static str,
    bytes: i64,
    sha256: &'u str,
    content_type: &'static str,
    content_encoding: &'static str,
    created_at: Time,
    expires_at: Time,
    used_by: &'u [Uuid],
}

impl<'u> From<&'u Upload> for UploadResource<'u> {
    fn from(upload: &'u Upload) -> UploadResource<'u> {
        UploadResource {
            id: upload.id,
            state: "ready",
            bytes: upload.bytes,
            sha256: &upload.sha256,
            content_type: upload.content_type.as_str(),
            content_encoding: upload.content_encoding.as_str(),
            created_at: Time(upload.created_at),
            expires_at: Time(upload.expires_at),
            used_by: &upload.used_by,
        }
    }
}

#[derive(Serialize)]
struct Page<'u> {
    uploads: Vec<UploadResource<'u>>,
    next_cursor: Option<String>,
}

fn path(id: Uuid) -> String {
    format!("/v1/uploads/{id}")
}

pub(super) async fn create(request: HttpRequest, shared: State, body: web::Payload) -> Result<HttpResponse, Problem> {
    refuse_when_stopping(&shared)?;
    let declared = Declared {
        content_type: content_type(&request)?,
        content_encoding: content_encoding(&request)?,
        sha256: content_digest(&request)?,
        length: content_length(&request),
    };
    let upload = receive::receive(&shared, &declared, body).await?;
    Ok(HttpResponse::Created().insert_header((header::LOCATION, path(upload.id))).json(UploadResource::from(&upload)))
}

pub(super) async fn list(request: HttpRequest, shared: State) -> Result<HttpResponse, Problem> {
    let paging = Paging::read(request.query_string(), "uploads", |name, _| {
        Err(invalid(name, "unknown parameter; expected one of: limit, cursor"))
    })?;
    let (behind, limit) = (paging.behind, paging.limit + 1);
    let found = shared.doorway.run(move |connection| store::list(connection, behind, limit)).await?;
    let (page, more) = paging.cut(&found);
    let mut response = HttpResponse::Ok();
    let next_cursor = page.last().filter(|_| more).map(|last| paging.next(&mut response, "/v1/uploads", last.id));
    Ok(response.json(Page { uploads: page.iter().map(UploadResource::from).collect(), next_cursor }))
}

pub(super) async fn get(shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    match shared.doorway.run(move |connection| store::upload(connection, id)).await? {
        Some(upload) => Ok(HttpResponse::Ok().json(UploadResource::from(&upload))),
        None => Err(Problem::new(Code::UploadNotFound, format!("there is no upload {id}, or its time has passed"))
            .field("id", "expected the id of an upload that is ready")),
    }
}

pub(super) async fn delete(shared: State, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let id = parse_id(&id)?;
    match shared.doorway.run(move |connection| store::delete(connection, id)).await? {
        Deleted::Gone => Ok(HttpResponse::NoContent().finish()),
        Deleted::InUse(jobs) => {
            let paths = jobs.iter().map(|job| wire::path(*job)).collect::<Vec<_>>().join(", ");
            Err(Problem::new(Code::UploadInUse, "jobs that have not ended read this upload")
                .field("id", format!("expected an upload that no unfinished job names; see {paths}"))
                .hint("cancel them first, or wait until they have ended"))
        }
    }
}

fn text(request: &HttpRequest, name: impl header::AsHeaderName) -> &str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim()
}

fn content_type(request: &HttpRequest) -> Result<ContentType, Problem> {
    let names = [Format::Csv, Format::Ndjson].map(Format::media_type).join(", ");
    let refused = |expected: String| {
        Problem::new(Code::UnsupportedMediaType, "the body must be CSV or NDJSON in UTF-8, and say so")
            .field("Content-Type", expected)
            .header(HeaderName::from_static("accept-post"), names.clone())
    };
    let given = MediaType::read(text(request, header::CONTENT_TYPE));
    let kind = match (given.format(), given.header()) {
        (Some(Format::Ndjson), _) => ContentType::Ndjson,
        (Some(Format::Csv), Some(true)) => ContentType::Csv,
        (Some(Format::Csv), Some(false)) => ContentType::CsvWithoutHeader,
        (Some(Format::Csv), None) => return Err(refused("expected header=present or header=absent".to_owned())),
        (Some(Format::Json) | None, _) => return Err(refused(format!("expected one of: {names}"))),
    };
    if given.is_utf8() {
        return Ok(kind);
    }
    let expected =
        "expected charset=utf-8 and a body in UTF-8; convert it first, such as by iconv -f WINDOWS-1252 -t UTF-8";
    Err(refused(expected.to_owned()))
}

fn content_encoding(request: &HttpRequest) -> Result<ContentEncoding, Problem> {
    let given = content_coding(request);
    let known = if given.is_empty() { Some(ContentEncoding::Identity) } else { ContentEncoding::parse(&given) };
    known.ok_or_else(|| coding_not_taken(&given, &ContentEncoding::ALL.map(ContentEncoding::as_str).join(", ")))
}

/// The SHA-256 that the caller has of the body, where it has one. Digests of other kinds alone are refused: nobody is
/// to believe that they were compared.
fn content_digest(request: &HttpRequest) -> Result<Option<[u8; 32]>, Problem> {
    let mut given = request.headers().get_all(CONTENT_DIGEST).peekable();
    if given.peek().is_none() {
        return Ok(None);
    }
    let members = given.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let digest = members.filter_map(|member| member.trim().split_once('=')).find(|(name, _)| *name == "sha-256");
    digest
        .and_then(|(_, value)| value.strip_prefix(':')?.strip_suffix(':'))
        .and_then(|value| STANDARD.decode(value).ok()?.try_into().ok())
        .map(Some)
        .ok_or_else(|| {
            Problem::new(Code::InvalidHeader, "the header Content-Digest can't be read")
                .field("Content-Digest", "expected sha-256=:…: with the digest of the body in base64")
        })
}

fn content_length(request: &HttpRequest) -> Option<i64> {
    text(request, header::CONTENT_LENGTH).parse().ok()
}
