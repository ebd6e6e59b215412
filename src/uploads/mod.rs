//! Bodies that jobs read: kept in bounded parts, complete or not there.
//!
//! An upload that is being received can't be seen. One statement makes it ready, and only if every part is there. What
//! is broken off, unused or deleted goes in small steps ([`store::sweep`]); one that an unfinished job names stays.
//! Knows no HTTP and no kind: what the bytes mean is its readers' business.

mod reader;
pub mod store;

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use reader::{ReadError, Reader};

/// Bytes of a part, but for the last one: 1 MiB.
pub const PART_BYTES: usize = 1024 * 1024;
/// The largest upload, as it is sent: 10 GiB.
pub const MAX_UPLOAD_BYTES: i64 = 10 * 1024 * 1024 * 1024;
/// How long an upload is kept that no job uses: 24 hours.
pub const KEPT: Duration = Duration::from_secs(86_400);
/// How much longer an upload is kept whose time has passed while a job uses it; again and again, until none does.
pub const KEPT_AFTER_USE: Duration = Duration::from_secs(3_600);
/// The most users of an upload that are named.
pub const MAX_USERS_NAMED: i64 = 100;

/// What the bytes are, before they are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// CSV; whether it begins with a header isn't said, or it does.
    Csv,
    /// CSV whose first line is a row.
    CsvWithoutHeader,
    /// One JSON object a line.
    Ndjson,
}

impl ContentType {
    /// Every type.
    pub const ALL: [ContentType; 3] = [ContentType::Csv, ContentType::CsvWithoutHeader, ContentType::Ndjson];

    /// The media type, in lower case, as it is stored and given out.
    pub fn as_str(self) -> &'static str {
        match self {
            ContentType::Csv => "text/csv",
            ContentType::CsvWithoutHeader => "text/csv; header=absent",
            ContentType::Ndjson => "application/x-ndjson",
        }
    }

    /// The type of one that was stored.
    pub fn stored(name: &str) -> Option<ContentType> {
        ContentType::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// How the bytes are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentEncoding {
    /// As they are.
    Identity,
    /// gzip: one member or more.
    Gzip,
    /// zstd: one frame or more.
    Zstd,
}

impl ContentEncoding {
    /// Every coding.
    pub const ALL: [ContentEncoding; 3] = [ContentEncoding::Identity, ContentEncoding::Gzip, ContentEncoding::Zstd];

    /// The word in headers.
    pub fn as_str(self) -> &'static str {
        match self {
            ContentEncoding::Identity => "identity",
            ContentEncoding::Gzip => "gzip",
            ContentEncoding::Zstd => "zstd",
        }
    }

    /// The coding that a word means. `x-gzip` is an old name of gzip's.
    pub fn parse(name: &str) -> Option<ContentEncoding> {
        let name = name.to_ascii_lowercase();
        let name = if name == "x-gzip" { "gzip" } else { name.as_str() };
        ContentEncoding::ALL.into_iter().find(|coding| coding.as_str() == name)
    }
}

/// An upload that is about to be received.
#[derive(Clone, Debug)]
pub struct NewUpload {
    /// A UUIDv7 made in this process.
    pub id: Uuid,
    /// What the bytes are.
    pub content_type: ContentType,
    /// How they are coded.
    pub content_encoding: ContentEncoding,
    /// It is given up when no part has come for so long.
    pub patience: Duration,
}

/// An upload that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub id: Uuid,
    /// What the bytes are.
    pub content_type: ContentType,
    /// How they are coded.
    pub content_encoding: ContentEncoding,
    /// How many they are, as they came in.
    pub bytes: i64,
    /// In how many parts they are kept.
    pub parts: i32,
    /// Of the bytes as they came in, in hexadecimal.
    pub sha256: String,
    /// When the last of them was stored.
    pub created_at: DateTime<Utc>,
    /// When it goes, unless a job uses it then.
    pub expires_at: DateTime<Utc>,
    /// Unfinished jobs that read it, the first [`MAX_USERS_NAMED`] of them.
    pub used_by: Vec<Uuid>,
}
