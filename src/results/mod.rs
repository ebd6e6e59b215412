//! Where results are kept, and the forms in which they are fetched.
//!
//! A result is kept as rows, not as a format: zstd parts of length-prefixed text values. Nothing of it can be seen
//! before the statement that ends the job names its manifest. The manifest holds the exact length of each part in
//! each format, so that every format has a length and ranges without being encoded first. Knows the queue's leases;
//! knows no HTTP, no kind and no libpq.

mod csv;
mod json;
pub mod range;
mod rows;
pub mod store;
mod writer;

use serde::{Deserialize, Serialize};

pub use writer::{Limits, Pushed, ResultWriter};

use crate::db::DbError;
use crate::queue::RawJson;
use crate::queue::lifecycle::end::FinishedResult;

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name as the statement gave it, not necessarily unique.
    pub name: String,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type as Postgres writes it, modifier included.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// One part: its rows in the order of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Rows in it.
    pub rows: u64,
    /// Uncompressed bytes.
    pub bytes: u64,
    /// Its length as CSV.
    pub csv_bytes: u64,
    /// Its length as NDJSON.
    pub ndjson_bytes: u64,
}

/// What a complete result is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its parts, in order; part `n` is stored under the number `n`.
    pub parts: Vec<PartInfo>,
    /// Rows in all.
    pub rows: i64,
    /// Uncompressed bytes in all.
    pub bytes: i64,
    /// It ends at a limit.
    pub truncated: bool,
    /// Of all uncompressed bytes, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// What the end of a job stores of it: the manifest in JSON, which the queue doesn't read.
    fn finished(&self) -> Result<FinishedResult, ResultError> {
        let manifest = RawJson::of(self).map_err(ResultError::Manifest)?;
        Ok(FinishedResult { rows: self.rows, bytes: self.bytes, truncated: self.truncated, manifest })
    }
}

/// A form in which a result is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As `COPY … CSV HEADER` writes it.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// One JSON array of objects.
    Json,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 3] = [Format::Csv, Format::Ndjson, Format::Json];

    /// Its name in `?format=`, and the ending of a file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Ndjson => "ndjson",
            Format::Json => "json",
        }
    }

    /// The format that a name stands for.
    pub fn parse(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.as_str() == name)
    }

    /// Its media type, without parameters.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Csv => "text/csv",
            Format::Ndjson => "application/x-ndjson",
            Format::Json => "application/json",
        }
    }
}

/// The bytes that a result is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Representation {
    /// Their format.
    pub format: Format,
    /// CSV begins with a line that has the names of the columns.
    pub header: bool,
}

impl From<Format> for Representation {
    fn from(format: Format) -> Representation {
        Representation { format, header: true }
    }
}

impl Representation {
    /// Its media type with parameters.
    pub fn content_type(self) -> &'static str {
        match (self.format, self.header) {
            (Format::Csv, true) => "text/csv; charset=utf-8; header=present",
            (Format::Csv, false) => "text/csv; charset=utf-8; header=absent",
            (Format::Ndjson | Format::Json, _) => self.format.media_type(),
        }
    }
}

impl Manifest {
    /// The exact length of the whole result, in bytes.
    pub fn length(&self, representation: Representation) -> u64 {
        range::segments(self, representation).last().map_or(0, |segment| segment.start + segment.length)
    }

    /// A strong entity tag of the result, quotes included.
    pub fn etag(&self, representation: Representation) -> String {
        let digest = self.sha256.get(..32).unwrap_or(&self.sha256);
        let headless = representation.format == Format::Csv && !representation.header;
        format!("\"{digest}-{}{}\"", representation.format.as_str(), if headless { "-headless" } else { "" })
    }
}

/// Why a result can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// Somebody else has the job.
    #[error("the lease was lost: what this attempt produces is no longer wanted")]
    LeaseLost,
    /// The database that keeps results has no room left.
    #[error("the database that keeps results has no room left")]
    StoreFull,
    /// A stored part isn't what the manifest says.
    #[error("a stored part is damaged: {0}")]
    Damaged(&'static str),
    /// A value is larger than a part can hold.
    #[error("a value is too large to be kept")]
    TooLarge,
    /// The result has no manifest in JSON.
    #[error("the result can't be described: {0}")]
    Manifest(#[source] serde_json::Error),
    /// Parts can't be compressed.
    #[error("a part of the result can't be compressed: {0}")]
    Compression(#[source] std::io::Error),
    /// The thread that keeps parts can't be started.
    #[error("no thread that keeps the result can be started: {0}")]
    Thread(#[source] std::io::Error),
    /// An earlier error ended the writer.
    #[error("the writer of this result has failed")]
    WriterFailed,
    /// The queue's database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}
