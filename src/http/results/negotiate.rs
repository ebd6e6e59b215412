//! Which format, which coding and which bytes a request for data asks for.

use std::io::Write;
use std::ops::Range;

use actix_web::HttpRequest;
use actix_web::http::header;
use actix_web::web;
use flate2::write::GzEncoder;

use crate::http::extract::media::MediaType;
use crate::http::problem::{Code, Problem};
use crate::results::{Format, Representation};

/// Fast enough to be sent while it is read.
const ZSTD_LEVEL: i32 = 3;

/// The format, and whether CSV has a header: `?format=` before `Accept`, CSV where neither says.
pub(super) fn representation(request: &HttpRequest) -> Result<Representation, Problem> {
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
        return Ok(format.into());
    }
    match request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()) {
        None => Ok(Format::Csv.into()),
        Some(accept) => accepted(accept).ok_or_else(|| {
            let types = Format::ALL.map(Format::media_type).join(", ");
            Problem::new(Code::NotAcceptable, "none of the media types in Accept is offered")
                .field("Accept", format!("expected one of: {types}"))
        }),
    }
}

/// What has the highest weight; the first named one among equals.
fn accepted(accept: &str) -> Option<Representation> {
    let mut best: Option<(f32, Representation)> = None;
    let ranges = MediaType::list(accept);
    for range in &ranges {
        let weight = range.weight();
        let offered = offered(range, &ranges).filter(|_| weight > 0.0 && best.is_none_or(|(most, _)| weight > most));
        best = offered.map(|offered| (weight, offered)).or(best);
    }
    best.map(|(_, representation)| representation)
}

/// What is offered of a range of media types. `None` as well when a parameter asks for what isn't. A wildcard stands
/// for what no other of the ranges names more exactly (RFC 9110, 12.5.1): beside `text/csv;q=0` it is no CSV.
fn offered(range: &MediaType, ranges: &[MediaType]) -> Option<Representation> {
    let rest = |formats: &[Format], within: Option<(&str, &[Format])>| {
        let named = |format: Format| {
            let exactly = |other: &MediaType| other.format() == Some(format) && other.header() == Some(true);
            let as_group = |other: &MediaType| {
                within.is_some_and(|(group, members)| other.name() == group && members.contains(&format))
            };
            ranges.iter().any(|other| exactly(other) || as_group(other))
        };
        formats.iter().copied().find(|format| !named(*format))
    };
    const TEXT: &[Format] = &[Format::Csv];
    const APPLICATION: &[Format] = &[Format::Json, Format::Ndjson];
    let format = match range.name() {
        "*/*" => {
            let free = |group, members| rest(members, Some((group, members)));
            free("text/*", TEXT).or_else(|| free("application/*", APPLICATION))?
        }
        "text/*" => rest(TEXT, None)?,
        "application/*" => rest(APPLICATION, None)?,
        _ => range.format()?,
    };
    let header = format != Format::Csv || range.header()?;
    range.is_utf8().then_some(Representation { format, header })
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
    let codings = MediaType::list(given);
    let takes = |name: &str| codings.iter().any(|coding| coding.name() == name && coding.weight() > 0.0);
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
        let format =
            |accept: &str| accepted(accept).map(|representation| (representation.format, representation.header));
        for (accept, expected) in [
            ("*/*", Some((Format::Csv, true))),
            ("application/json", Some((Format::Json, true))),
            ("application/json; charset=utf-8", Some((Format::Json, true))),
            ("text/csv;q=0.5, application/x-ndjson", Some((Format::Ndjson, true))),
            ("Application/JSONL", Some((Format::Ndjson, true))),
            ("image/png", None),
            ("text/csv;q=0", None),
            ("text/csv; header=absent", Some((Format::Csv, false))),
            ("text/csv;HEADER=\"Absent\";q=0.5", Some((Format::Csv, false))),
            ("application/csv; header=present", Some((Format::Csv, true))),
            ("text/csv; header=maybe", None),
            ("text/csv; charset=latin1, application/json;q=0.1", Some((Format::Json, true))),
            ("text/csv;q=0.9, text/csv; header=absent", Some((Format::Csv, false))),
            ("text/html, */*;q=0.8", Some((Format::Csv, true))),
            // A wildcard is what nothing else names.
            ("text/csv;q=0, */*", Some((Format::Json, true))),
            ("*/*, text/csv;q=0", Some((Format::Json, true))),
            ("text/*;q=0, */*;q=0.1", Some((Format::Json, true))),
            ("application/*;q=0, */*", Some((Format::Csv, true))),
            ("application/json;q=0, application/*", Some((Format::Ndjson, true))),
            ("application/csv;q=0, text/*", None),
            ("text/csv;q=0, application/json;q=0, application/jsonl;q=0, */*", None),
            ("text/csv;q=0.2, */*;q=0.9", Some((Format::Json, true))),
            ("text/csv, */*;q=0.1", Some((Format::Csv, true))),
        ] {
            assert_eq!(format(accept), expected, "{accept}");
        }
    }
}
