//! A result in a format, as a row of segments: what comes before the rows, each part, what comes after. Any range of
//! bytes is found without encoding what lies before it.

use std::ops::Range;

use crate::results::rows;
use crate::results::{Format, Manifest, PartInfo, Representation, ResultError, csv, json};

/// Where a segment's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// They are these.
    Fixed(Vec<u8>),
    /// They are made from the part of this number.
    Part(usize),
}

/// A piece of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte in the whole.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where its bytes come from.
    pub source: Source,
}

/// The whole, in order.
pub fn segments(manifest: &Manifest, representation: Representation) -> Vec<Segment> {
    let format = representation.format;
    let (before, after): (Vec<u8>, &[u8]) = match format {
        Format::Csv if representation.header => (csv::header(&manifest.columns), b""),
        Format::Csv | Format::Ndjson => (Vec::new(), b""),
        Format::Json => (b"[".to_vec(), b"]\n"),
    };
    let mut segments = Vec::with_capacity(manifest.parts.len() + 2);
    let mut start = 0;
    let parts = manifest.parts.iter().enumerate().map(|(n, part)| (Source::Part(n), part_length(part, n, format)));
    let fixed = |bytes: &[u8]| (Source::Fixed(bytes.to_vec()), u64::try_from(bytes.len()).unwrap_or(0));
    for (source, length) in std::iter::once(fixed(&before)).chain(parts).chain(std::iter::once(fixed(after))) {
        segments.push(Segment { start, length, source });
        start += length;
    }
    segments
}

/// In a JSON array each row but the first of all follows a comma and a line's end.
fn part_length(part: &PartInfo, n: usize, format: Format) -> u64 {
    match format {
        Format::Csv => part.csv_bytes,
        Format::Ndjson => part.ndjson_bytes,
        Format::Json => part.ndjson_bytes + part.rows - if n == 0 { 2 } else { 0 },
    }
}

/// A segment, and which of its bytes are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the segment's bytes come from.
    pub source: Source,
    /// The segment's length in bytes.
    pub length: u64,
    /// The wanted ones.
    pub wanted: Range<u64>,
}

/// The pieces that make up `range` of the whole.
pub fn pieces(manifest: &Manifest, representation: Representation, range: &Range<u64>) -> Vec<Piece> {
    segments(manifest, representation)
        .into_iter()
        .filter_map(|segment| {
            let from = range.start.max(segment.start);
            let to = range.end.min(segment.start + segment.length);
            (from < to).then(|| Piece {
                wanted: from - segment.start..to - segment.start,
                length: segment.length,
                source: segment.source,
            })
        })
        .collect()
}

/// The wanted bytes of a piece. `stored` is the part that it is made from.
///
/// # Errors
/// [`ResultError::Damaged`] when the part isn't what the manifest says.
pub fn encode(manifest: &Manifest, format: Format, piece: &Piece, stored: &[u8]) -> Result<Vec<u8>, ResultError> {
    let bytes = match &piece.source {
        Source::Fixed(bytes) => bytes.clone(),
        Source::Part(n) => encode_part(manifest, *n, format, stored)?,
    };
    if u64::try_from(bytes.len()).ok() != Some(piece.length) {
        return Err(ResultError::Damaged("its encoded length isn't the manifest's"));
    }
    let (from, to) = (usize::try_from(piece.wanted.start), usize::try_from(piece.wanted.end));
    match (from, to) {
        (Ok(0), Ok(to)) if to == bytes.len() => Ok(bytes),
        (Ok(from), Ok(to)) => bytes.get(from..to).map(<[u8]>::to_vec).ok_or(ResultError::Damaged("it is too short")),
        _ => Err(ResultError::TooLarge),
    }
}

fn encode_part(manifest: &Manifest, n: usize, format: Format, stored: &[u8]) -> Result<Vec<u8>, ResultError> {
    let part = manifest.parts.get(n).ok_or(ResultError::Damaged("the manifest has no such part"))?;
    let size = usize::try_from(part.bytes).map_err(|_| ResultError::TooLarge)?;
    // Verifies the checksum that the part carries.
    let rows = zstd::bulk::decompress(stored, size).map_err(|_| ResultError::Damaged("it can't be decompressed"))?;
    if rows.len() != size {
        return Err(ResultError::Damaged("it is too short"));
    }
    let mut out = Vec::with_capacity(usize::try_from(part_length(part, n, format)).unwrap_or(0));
    let encoder = json::Encoder::new(&manifest.columns);
    let mut first = n == 0;
    rows::for_each(&rows, manifest.columns.len(), part.rows, |values| match format {
        Format::Csv => csv::append(&mut out, values),
        Format::Ndjson => {
            encoder.append(&mut out, values);
            out.push(b'\n');
        }
        Format::Json => {
            if !std::mem::replace(&mut first, false) {
                out.extend_from_slice(b",\n");
            }
            encoder.append(&mut out, values);
        }
    })?;
    Ok(out)
}
