//! Headers that several routes read: preferences, entity tags, keys.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName};

use crate::http::problem::{Code, Problem};
use crate::queue::intake::request::Idempotency;

/// The longest `Prefer: wait`.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// The longest `Idempotency-Key`, in characters.
const MAX_KEY_CHARS: usize = 255;
/// The longest `Content-Encoding` that is repeated, in characters.
const MAX_CODING_CHARS: usize = 40;

/// What `Prefer: wait=N` (RFC 7240) asks for, at most [`MAX_WAIT`]. A preference that can't be read is none.
pub fn prefer_wait(request: &HttpRequest) -> Option<Duration> {
    request
        .headers()
        .get_all(HeaderName::from_static("prefer"))
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .filter_map(|preference| preference.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u64>().ok())
        .map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT))
}

/// One of the tags in `If-None-Match` is `etag`, weakly compared (RFC 9110).
pub fn if_none_match(request: &HttpRequest, etag: &str) -> bool {
    request
        .headers()
        .get_all(header::IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.trim() == "*" || value.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag))
}

/// How a request says that its body is coded: all of `Content-Encoding`, in their order; empty where it doesn't say.
pub fn content_coding(request: &HttpRequest) -> String {
    let given = request.headers().get_all(header::CONTENT_ENCODING);
    given.map(|value| value.to_str().unwrap_or("?").trim()).collect::<Vec<_>>().join(", ")
}

/// 415 for a body that is coded as none of `taken` says. A coding is repeated where it is a word, as those in use are.
pub fn coding_not_taken(given: &str, taken: &str) -> Problem {
    let is_words = given.len() <= MAX_CODING_CHARS
        && given.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ',' | ' '));
    let detail = match is_words {
        true => format!("the body is coded as {given}, which is not taken here"),
        false => "the body is coded in a way that is not taken here".to_owned(),
    };
    Problem::new(Code::UnsupportedMediaType, detail)
        .field("Content-Encoding", format!("expected one of: {taken}"))
        .header(header::ACCEPT_ENCODING, taken)
}

/// The `Idempotency-Key`, quoted or bare, with the digest of what it is used for.
///
/// # Errors
/// 400 for one that is empty, too long or not printable.
pub fn idempotency(request: &HttpRequest, fingerprint: Vec<u8>) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = request.headers().get(HeaderName::from_static("idempotency-key")) else {
        return Ok(None);
    };
    let invalid = || {
        Problem::new(Code::InvalidHeader, "the Idempotency-Key can't be used")
            .field("Idempotency-Key", format!("expected 1 to {MAX_KEY_CHARS} printable characters, quoted or bare"))
    };
    let text = value.to_str().map_err(|_| invalid())?.trim();
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if key.is_empty() || key.chars().count() > MAX_KEY_CHARS || key.chars().any(char::is_control) {
        return Err(invalid());
    }
    Ok(Some(Idempotency {
        route: format!("{} {}", request.method(), request.path()),
        key: key.to_owned(),
        fingerprint,
    }))
}
