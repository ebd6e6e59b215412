//! Problem documents (RFC 9457): one closed list of codes, each with its status, title and whether trying again helps.
//!
//! A failure of ours has a fixed text; its cause is one line of the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, HttpResponse, ResponseError, web};
use serde::Serialize;

use crate::db::DbError;
use crate::http::Common;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:ident, $title:literal;)*) => {
        /// What a problem document's `code` can be.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The word in documents.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $word,)* }
            }

            /// The status that it comes with.
            pub fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status,)* }
            }

            fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is no JSON, or JSON that no two readers understand alike.
    MalformedJson = "malformed_json", BAD_REQUEST, "The body is not valid JSON";
    /// The request's head, path or query can't be read.
    MalformedRequest = "malformed_request", BAD_REQUEST, "The request can't be read";
    /// A query parameter is unknown or has no valid value.
    InvalidParameter = "invalid_parameter", BAD_REQUEST, "A query parameter is not valid";
    /// A header has no valid value.
    InvalidHeader = "invalid_header", BAD_REQUEST, "A header is not valid";
    /// A cursor that this server didn't give out, or gave out for another list.
    InvalidCursor = "invalid_cursor", BAD_REQUEST, "The cursor is not valid";
    /// A job's id that is no UUID.
    InvalidId = "invalid_id", BAD_REQUEST, "The id is not a UUID";
    /// The token is missing or wrong.
    Unauthorized = "unauthorized", UNAUTHORIZED, "A token is needed";
    /// The request comes from a page of somebody else's.
    ForeignOrigin = "foreign_origin", FORBIDDEN, "Requests from this origin are not allowed";
    /// There is nothing at this path.
    NotFound = "not_found", NOT_FOUND, "There is nothing here";
    /// There is no upload of this id, or no longer.
    UploadNotFound = "upload_not_found", NOT_FOUND, "There is no such upload";
    /// There is no worker of this id, or it is long dead.
    WorkerNotFound = "worker_not_found", NOT_FOUND, "There is no such worker";
    /// There is no target of this name.
    TargetNotFound = "target_not_found", NOT_FOUND, "There is no such target";
    /// There is no queue of this name.
    QueueNotFound = "queue_not_found", NOT_FOUND, "There is no such queue";
    /// There is no saved statement of this name.
    StatementNotFound = "statement_not_found", NOT_FOUND, "There is no such saved statement";
    /// There is no job of this id, or no longer.
    JobNotFound = "job_not_found", NOT_FOUND, "There is no such job";
    /// The path has other methods.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed here";
    /// None of the formats that the client takes is one of ours.
    NotAcceptable = "not_acceptable", NOT_ACCEPTABLE, "No such format";
    /// The client was too slow.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request took too long";
    /// The job has ended and can't be cancelled.
    AlreadyFinished = "already_finished", CONFLICT, "The job has already ended";
    /// Jobs of this kind can't be paused.
    KindNotResumable = "kind_not_resumable", CONFLICT, "Jobs of this kind can't be paused";
    /// The job still runs or waits.
    JobNotFinished = "job_not_finished", CONFLICT, "The job has not ended yet";
    /// The job waits, runs or succeeded: there is nothing to retry.
    NotRetryable = "not_retryable", CONFLICT, "The job can't be retried";
    /// There is no folder of saved statements.
    NoStatements = "no_statements", CONFLICT, "There are no saved statements here";
    /// The job has a retry that hasn't ended.
    RetryUnfinished = "retry_unfinished", CONFLICT, "A retry of the job has not ended yet";
    /// Unfinished jobs read the upload.
    UploadInUse = "upload_in_use", CONFLICT, "The upload is in use";
    /// The job has not ended: its result may come.
    ResultNotReady = "result_not_ready", CONFLICT, "The job has not ended yet";
    /// The job failed: there is no result.
    JobFailed = "job_failed", CONFLICT, "The job failed";
    /// The job was cancelled: there is no result.
    JobCancelled = "job_cancelled", CONFLICT, "The job was cancelled";
    /// The result's time has passed.
    ResultExpired = "result_expired", GONE, "The result has expired";
    /// The result was deleted.
    ResultDeleted = "result_deleted", GONE, "The result was deleted";
    /// The body is larger than allowed.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The body isn't declared as what is taken here.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body's type or coding is not taken here";
    /// The range lies outside the result.
    RangeNotSatisfiable = "range_not_satisfiable", RANGE_NOT_SATISFIABLE, "The range lies outside the result";
    /// The `Host` is none of ours.
    MisdirectedRequest = "misdirected_request", MISDIRECTED_REQUEST, "This host is not served here";
    /// Fields are missing, unknown or out of bounds.
    InvalidRequest = "invalid_request", UNPROCESSABLE_ENTITY, "The request is not valid";
    /// The kind refuses its arguments.
    InvalidArgs = "invalid_args", UNPROCESSABLE_ENTITY, "The arguments are not valid";
    /// The body isn't the one that its digest is of.
    DigestMismatch = "digest_mismatch", UNPROCESSABLE_ENTITY, "The digest is of another body";
    /// The arguments name an upload of another type than they say.
    FormatMismatch = "format_mismatch", UNPROCESSABLE_ENTITY, "The upload is of another format";
    /// The arguments name an upload that isn't there.
    UnknownUpload = "unknown_upload", UNPROCESSABLE_ENTITY, "There is no such upload";
    /// There is no saved statement of this name.
    UnknownStatement = "unknown_statement", UNPROCESSABLE_ENTITY, "There is no such saved statement";
    /// The target runs saved statements only.
    StatementsOnly = "statements_only", UNPROCESSABLE_ENTITY, "The target runs saved statements only";
    /// There is no such kind of work.
    UnknownKind = "unknown_kind", UNPROCESSABLE_ENTITY, "There is no such kind";
    /// There is no such target.
    UnknownTarget = "unknown_target", UNPROCESSABLE_ENTITY, "There is no such target";
    /// There is no such queue.
    UnknownQueue = "unknown_queue", UNPROCESSABLE_ENTITY, "There is no such queue";
    /// A field of the contract whose feature isn't there.
    NotSupportedYet = "not_supported_yet", UNPROCESSABLE_ENTITY, "The field is not supported yet";
    /// The key was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The idempotency key was used for another request";
    /// A clock is more than a day off.
    ClockDifference = "clock_difference", UNPROCESSABLE_ENTITY, "The clocks differ too much";
    /// The request's head is too large.
    HeadTooLarge = "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large";
    /// A failure of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong here";
    /// Too many requests wait to be written.
    Busy = "busy", SERVICE_UNAVAILABLE, "Too many requests are waiting";
    /// No answer from the database in time.
    DatabaseBusy = "database_busy", SERVICE_UNAVAILABLE, "The database is busy";
    /// The database can't be reached.
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE, "The database can't be reached";
    /// The connection was lost in the commit.
    OutcomeUnknown = "outcome_unknown", SERVICE_UNAVAILABLE, "Whether the job was accepted is not known";
    /// The store of results and uploads is full.
    ResultStoreFull = "result_store_full", SERVICE_UNAVAILABLE, "The store of results and uploads is full";
    /// The folder of saved statements can't be read.
    StatementsUnreadable = "statements_unreadable", SERVICE_UNAVAILABLE, "The saved statements can't be read";
    /// The process is going down.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE, "The server is shutting down";
}

/// One field that isn't valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// A JSON pointer into the body, or the name of a parameter or header.
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

/// A problem, on its way to become a document.
#[derive(Clone, Debug)]
pub struct Problem {
    pub(crate) code: Code,
    detail: String,
    hint: Option<String>,
    errors: Vec<FieldError>,
    headers: Vec<(header::HeaderName, String)>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: Option<&'a str>,
    code: &'a str,
    retryable: bool,
    sqlstate: Option<&'a str>,
    hint: Option<&'a str>,
    position: Option<u32>,
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem with a sentence on what happened.
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into(), hint: None, errors: Vec::new(), headers: Vec::new() }
    }

    /// Names a field and what was expected there.
    #[must_use]
    pub fn field(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Problem {
        self.errors.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        self
    }

    /// Names many fields.
    #[must_use]
    pub fn fields(mut self, errors: Vec<FieldError>) -> Problem {
        self.errors.extend(errors);
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a header to the response.
    #[must_use]
    pub fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Problem {
        self.headers.push((name, value.into()));
        self
    }

    fn document(&self, instance: Option<&str>) -> String {
        let status = self.code.status();
        let document = Document {
            r#type: format!("urn:slowlane:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: status.as_u16(),
            detail: &self.detail,
            instance,
            code: self.code.as_str(),
            retryable: matches!(status.as_u16(), 408 | 429 | 503) || self.code == Code::ResultNotReady,
            sqlstate: None,
            hint: self.hint.as_deref(),
            position: None,
            errors: &self.errors,
        };
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// The document as a response; `instance` is the path that was asked for.
    pub(super) fn response(&self, instance: Option<&str>) -> HttpResponse {
        let mut builder = HttpResponse::build(self.code.status());
        builder.insert_header((header::CONTENT_TYPE, MEDIA_TYPE));
        if self.code.status() == StatusCode::SERVICE_UNAVAILABLE {
            builder.insert_header((header::RETRY_AFTER, "1"));
        }
        for (name, value) in &self.headers {
            builder.insert_header((name.clone(), value.as_str()));
        }
        builder.body(self.document(instance))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response(None)
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Problem {
        match error {
            DbError::Busy(_) => {
                Problem::new(Code::DatabaseBusy, "the database did not answer in time; try again shortly")
            }
            DbError::Unavailable(reason) => {
                warn_of_outage("a request failed because the database is unavailable", &reason);
                Problem::new(
                    Code::DatabaseUnavailable,
                    "the database can't be reached at the moment; try again shortly",
                )
            }
            DbError::Query(error) => Problem::internal(&error),
        }
    }
}

/// So long without a failed request, and the next one belongs to another outage.
const OUTAGE_IS_OVER_AFTER: Duration = Duration::from_secs(10);

/// Warns of a request that failed because the database is away. In an outage every request does, at once: the first one
/// is said, and with the first one of the next outage how many weren't.
pub(super) fn warn_of_outage(what: &str, reason: &str) {
    static LAST: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let goes_on = last.0.is_some_and(|at| at.elapsed() < OUTAGE_IS_OVER_AFTER);
    last.0 = Some(Instant::now());
    if goes_on {
        last.1 = last.1.saturating_add(1);
        return;
    }
    let silent = std::mem::take(&mut last.1);
    drop(last);
    log::warn!(unlogged = silent; "{what}: {reason}");
}

impl Problem {
    /// A failure of ours: the cause is for the log alone.
    pub fn internal(cause: &dyn std::fmt::Display) -> Problem {
        log::error!("a request failed: {cause}");
        Problem::new(Code::Internal, "the request failed for a reason that the server's log has")
    }
}

/// Every answer of 400 and above is a document that names its own path, whoever made it; every request is counted.
pub async fn as_documents(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<actix_web::body::BoxBody>, Error> {
    let common = request.app_data::<web::Data<Common>>().cloned();
    let method = request.method().clone();
    let response = document_of(next.call(request).await?);
    if let Some(common) = common {
        common.metrics.answered(method.as_str(), response.status().as_u16());
    }
    Ok(with_common_headers(response))
}

/// One of ours is completed; an error that a part of actix answered in its own words is said in ours.
fn document_of<B: MessageBody + 'static>(response: ServiceResponse<B>) -> ServiceResponse<actix_web::body::BoxBody> {
    let status = response.status();
    let ours = response.response().error().and_then(|error| error.as_error::<Problem>()).cloned();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_document = content_type.is_some_and(|value| value == MEDIA_TYPE || value == "application/json");
    let problem = match ours {
        Some(problem) => problem,
        None if status.as_u16() < 400 || is_document || response.request().method() == Method::HEAD => {
            return response.map_into_boxed_body();
        }
        None => by_status(status, "the request was refused"),
    };
    let path = response.request().path().to_owned();
    response.into_response(problem.response(Some(&path)))
}

fn by_status(status: StatusCode, detail: &str) -> Problem {
    let code = match status.as_u16() {
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        408 => Code::RequestTimeout,
        413 => Code::BodyTooLarge,
        415 => Code::UnsupportedMediaType,
        431 => Code::HeadTooLarge,
        500.. => return Problem::internal(&detail),
        _ => Code::MalformedRequest,
    };
    Problem::new(code, detail)
}

fn with_common_headers<B>(mut response: ServiceResponse<B>) -> ServiceResponse<B> {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// For paths that nothing answers.
pub async fn no_route(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::new(Code::NotFound, format!("there is nothing at {}", request.path())))
}

/// For methods that a path doesn't have.
pub fn method_not_allowed(methods: &[Method]) -> Result<HttpResponse, Problem> {
    let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    Err(Problem::new(Code::MethodNotAllowed, format!("this path answers {allowed}")).header(header::ALLOW, allowed))
}
