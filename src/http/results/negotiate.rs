//! Which format, which coding and which bytes a request for data asks for.

use std::io::Write;
use std::ops::Range;

use actix_web::HttpRequest;
use actix_web::http::header;
use actix_web::web;
use flate2::write::GzEncoder;

use crate::http::problem::{Code, Problem};
use crate::results::Format;

/// Fast enough to be sent while it is read.
const ZSTD_LEVEL: i32 = 3;

/// The format: `?format=` before `Accept`, CSV where neither says.
pub(super) fn format(request: &HttpRequest) -> Result<Format, Problem> {
    let names = Format::ALL.map(Format::as_str).join(", ");
    let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
        .map_err(|_| Problem::new(Code::MalformedRequest, "the query can't be read"))?;
    let mut chosen = None;
    for (name, value) in pairs.iter() {
        let invalid = |expected: String| {
            Problem::new(Code::InvalidParameter, format!("the query parameter {name} is not valid"))
                .field(name, expected)
        };
        if name != "format" {
            return Err(invalid("unknown parameter; expected format".to_owned()));
        }
        chosen = Some(Format::parse(value).ok_or_else(|| invalid(format!("expected one of: {names}")))?);
    }
    if let Some(format) = chosen {
        return Ok(format);
    }
    match request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()) {
        None => Ok(Format::Csv),
        Some(accept) => accepted(accept).ok_or_else(|| {
            let types = Format::ALL.map(Format::media_type).join(", ");
            Problem::new(Code::NotAcceptable, "none of the media types in Accept is offered")
                .field("Accept", format!("expected one of: {types}"))
        }),
    }
}

/// The format with the highest weight; the first named one among equals.
fn accepted(accept: &str) -> Option<Format> {
    let mut best: Option<(f32, Format)> = None;
    for (media_type, weight) in weighted(accept) {
        let format = match media_type.as_str() {
            "*/*" | "text/*" => Some(Format::Csv),
            "application/*" => Some(Format::Json),
            "application/ndjson" | "application/jsonl" => Some(Format::Ndjson),
            other => Format::ALL.into_iter().find(|format| format.media_type() == other),
        };
        if let Some(format) = format.filter(|_| weight > 0.0 && best.is_none_or(|(most, _)| weight > most)) {
            best = Some((weight, format));
        }
    }
    best.map(|(_, format)| format)
}

/// The elements of a list with weights, in lower case.
fn weighted(list: &str) -> Vec<(String, f32)> {
    list.split(',')
        .map(|element| {
            let mut parameters = element.split(';').map(str::trim);
            let name = parameters.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parameters.find_map(|p| p.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
            (name, weight)
        })
        .collect()
}

/// How the bytes are coded on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

/// The coding that a request asks for: zstd before gzip.
pub(super) fn content_coding(request: &HttpRequest) -> Coding {
    let given =
        request.headers().get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let codings = weighted(given);
    let takes = |name: &str| codings.iter().any(|(coding, weight)| coding == name && *weight > 0.0);
    match () {
        () if takes("zstd") => Coding::Zstd,
        () if takes("gzip") => Coding::Gzip,
        () => Coding::Identity,
    }
}

impl Coding {
    pub fn name(self) -> Option<&'static str> {
        match self {
            Coding::Identity => None,
            Coding::Gzip => Some("gzip"),
            Coding::Zstd => Some("zstd"),
        }
    }

    /// A strong tag names one sequence of bytes, so each coding has its own.
    pub fn etag(self, identity: &str) -> String {
        match self.name() {
            None => identity.to_owned(),
            Some(name) => format!("{}-{name}\"", identity.trim_end_matches('"')),
        }
    }

    /// What codes a whole body.
    pub fn encoder(self) -> std::io::Result<Encoder> {
        Ok(match self {
            Coding::Identity => Encoder::Identity,
            Coding::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::default())),
            Coding::Zstd => Encoder::Zstd(zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        })
    }
}

/// Codes one body, piece by piece: one gzip member or one zstd frame in all. Their concatenations are allowed too, but
/// many clients stop after the first.
pub(super) enum Encoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// The next piece, flushed: a reader can decode all of it.
    pub fn encode(&mut self, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        Ok(match self {
            Encoder::Identity => bytes,
            Encoder::Gzip(encoder) => {
                encoder.write_all(&bytes)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(&bytes)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// What ends the body.
    pub fn finish(&mut self) -> std::io::Result<Vec<u8>> {
        match std::mem::replace(self, Encoder::Identity) {
            Encoder::Identity => Ok(Vec::new()),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// The one range that is asked for. `None` for the whole: no range, several, one that can't be read (RFC 9110 has it
/// ignored), or an `If-Range` that names something else.
pub(super) fn range(request: &HttpRequest, length: u64, etag: &str) -> Result<Option<Range<u64>>, Problem> {
    let Some(value) = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let same = request.headers().get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let Some(spec) = value.strip_prefix("bytes=").filter(|spec| same && !spec.contains(',')) else {
        return Ok(None);
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(last)) if first.is_empty() => length.saturating_sub(last)..length,
        _ => return Ok(None),
    };
    if range.start >= range.end {
        return Err(Problem::new(Code::RangeNotSatisfiable, "the range begins behind the last byte")
            .field("Range", format!("expected a range within {length} bytes"))
            .header(header::CONTENT_RANGE, format!("bytes */{length}")));
    }
    Ok(Some(range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn ask(value: &str) -> Result<Option<Range<u64>>, Problem> {
        range(&TestRequest::default().insert_header(("Range", value)).to_http_request(), 100, "\"tag\"")
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        assert_eq!(ask("bytes=0-9").unwrap(), Some(0..10));
        assert_eq!(ask("bytes=90-").unwrap(), Some(90..100));
        assert_eq!(ask("bytes=-10").unwrap(), Some(90..100));
        assert_eq!(ask("bytes=-1000").unwrap(), Some(0..100));
        assert_eq!(ask("bytes=50-1000").unwrap(), Some(50..100));
        for ignored in ["bytes=5-1", "bytes=a-b", "items=0-1", "bytes=0-1,3-4", "bytes=-", "bytes="] {
            assert_eq!(ask(ignored).unwrap(), None, "{ignored}");
        }
        for outside in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(ask(outside).unwrap_err().code, Code::RangeNotSatisfiable, "{outside}");
        }
    }

    #[test]
    fn formats_are_chosen_by_weight() {
        assert_eq!(accepted("*/*"), Some(Format::Csv));
        assert_eq!(accepted("application/json"), Some(Format::Json));
        assert_eq!(accepted("text/csv;q=0.5, application/x-ndjson"), Some(Format::Ndjson));
        assert_eq!(accepted("image/png"), None);
        assert_eq!(accepted("text/csv;q=0"), None);
    }
}
