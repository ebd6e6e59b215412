//! Bodies and queries of requests: JSON that says so, one text, or nothing at all.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, web};

use crate::http::MAX_BODY_BYTES;
use crate::http::extract::headers::{coding_not_taken, content_coding};
use crate::http::extract::{paging, strict_json};
use crate::http::problem::{Code, FieldError, Problem};
use crate::queue::model::pointer::step;

/// A body is JSON, uncoded, and says so.
pub(in crate::http) fn check_is_json(request: &HttpRequest) -> Result<(), Problem> {
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

pub(in crate::http) fn unreadable(error: &actix_web::Error) -> Problem {
    if error.as_response_error().status_code() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(Code::BodyTooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes"))
            .field("", format!("expected at most {MAX_BODY_BYTES} bytes"))
    } else {
        Problem::new(Code::MalformedRequest, "the body did not arrive whole")
    }
}

/// The one field that a body may have, a text; no body, no field and `null` are none.
pub(in crate::http) fn only_text(
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

/// For paths that know no parameters.
pub(in crate::http) fn no_parameters(request: &HttpRequest) -> Result<(), Problem> {
    match web::Query::<Vec<(String, String)>>::from_query(request.query_string()) {
        Ok(pairs) if pairs.is_empty() => Ok(()),
        Ok(pairs) => {
            let name = pairs.first().map(|(name, _)| name.as_str()).unwrap_or_default();
            Err(paging::invalid(name, "unknown parameter; expected none"))
        }
        Err(_) => Err(Problem::new(Code::MalformedRequest, "the query can't be read")),
    }
}

/// For requests without anything to say: no body, or an empty object.
pub(in crate::http) fn no_fields(
    request: &HttpRequest,
    body: Result<web::Bytes, actix_web::Error>,
) -> Result<(), Problem> {
    let body = body.map_err(|error| unreadable(&error))?;
    if body.is_empty() {
        return Ok(());
    }
    check_is_json(request)?;
    match strict_json::object(&body)?.keys().next() {
        None => Ok(()),
        Some(name) => Err(Problem::new(Code::InvalidRequest, "this request takes no fields")
            .field(step(name), "unknown field; expected none")),
    }
}
