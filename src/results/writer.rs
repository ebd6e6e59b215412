//! Rows in, parts out: bounded memory, whatever the size of the result.

use sha2::{Digest, Sha256};

use crate::db::DbError;
use crate::db::pool::Pool;
use crate::queue::Lease;
use crate::results::rows::{self, Value};
use crate::results::{Column, Manifest, PartInfo, ResultError, csv, json, store};

/// Uncompressed bytes after which a part is written: 1 MiB.
const PART_BYTES: usize = 1024 * 1024;
/// Rows after which a part is written, however small they are.
const PART_ROWS: u64 = 65_536;
/// The fastest level: parts are written while the statement runs, and read a few times at most.
const ZSTD_LEVEL: i32 = 1;

/// How large a result may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows.
    pub row_limit: Option<u64>,
    /// Uncompressed bytes, lengths included.
    pub byte_limit: u64,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is kept.
    Stored,
    /// It would be one over the row limit, and isn't kept.
    RowLimit,
    /// It would pass the byte limit, and isn't kept.
    ByteLimit,
}

/// Keeps the rows of one attempt.
pub struct ResultWriter {
    pool: Pool,
    lease: Lease,
    columns: Vec<Column>,
    limits: Limits,
    encoder: json::Encoder,
    part: Part,
    parts: Vec<PartInfo>,
    sha256: Sha256,
    rows: u64,
    bytes: u64,
    /// Asked when the queue can't be reached: waits a little, and says whether to try again.
    try_again: Box<dyn Fn() -> bool>,
}

#[derive(Default)]
struct Part {
    buffer: Vec<u8>,
    rows: u64,
    csv_bytes: u64,
    ndjson_bytes: u64,
}

impl ResultWriter {
    /// Writes parts for `lease`, through connections to the queue. While that can't be reached, `try_again` waits a
    /// little and says whether it is worth another try.
    pub fn new(
        pool: Pool,
        lease: Lease,
        columns: Vec<Column>,
        limits: Limits,
        try_again: impl Fn() -> bool + 'static,
    ) -> ResultWriter {
        ResultWriter {
            try_again: Box::new(try_again),
            pool,
            lease,
            encoder: json::Encoder::new(&columns),
            columns,
            limits,
            part: Part::default(),
            parts: Vec::new(),
            sha256: Sha256::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Rows kept so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Uncompressed bytes kept so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps one row, unless that would pass a limit.
    ///
    /// # Errors
    /// [`ResultError::LeaseLost`] when a part was refused because somebody else has the job.
    pub fn push<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>>) -> Result<Pushed, ResultError> {
        if self.limits.row_limit.is_some_and(|limit| self.rows >= limit) {
            return Ok(Pushed::RowLimit);
        }
        let values: Vec<Value<'v>> = values.collect();
        // A row without columns takes a byte: rows of no size would pass every limit.
        let size = values.iter().map(|value| 4 + count(value.map_or(0, <[u8]>::len))).sum::<u64>().max(1);
        if self.bytes + size > self.limits.byte_limit {
            return Ok(Pushed::ByteLimit);
        }
        rows::append(&mut self.part.buffer, &values)?;
        self.part.rows += 1;
        self.part.csv_bytes += count(csv::length(&values));
        self.part.ndjson_bytes += count(self.encoder.length(&values)) + 1;
        self.rows += 1;
        self.bytes += size;
        if self.part.buffer.len() >= PART_BYTES || self.part.rows >= PART_ROWS {
            self.write_part()?;
        }
        Ok(Pushed::Stored)
    }

    /// Writes what is left, and says what the result is made of.
    ///
    /// # Errors
    /// As [`ResultWriter::push`].
    pub fn finish(mut self, truncated: bool) -> Result<Manifest, ResultError> {
        if self.part.rows > 0 {
            self.write_part()?;
        }
        Ok(Manifest {
            columns: self.columns,
            parts: self.parts,
            rows: i64::try_from(self.rows).map_err(|_| ResultError::TooLarge)?,
            bytes: i64::try_from(self.bytes).map_err(|_| ResultError::TooLarge)?,
            truncated,
            sha256: hex(&self.sha256.finalize()),
        })
    }

    fn write_part(&mut self) -> Result<(), ResultError> {
        let n = i32::try_from(self.parts.len()).map_err(|_| ResultError::TooLarge)?;
        let data = zstd::bulk::compress(&self.part.buffer, ZSTD_LEVEL).map_err(|_| ResultError::TooLarge)?;
        let held = loop {
            let connection = self.pool.get().map_err(|_| DbError::Unavailable("no connection".to_owned()));
            match connection.and_then(|mut connection| store::write_part(&mut connection, &self.lease, n, &data)) {
                Err(DbError::Unavailable(_) | DbError::Busy(_)) if (self.try_again)() => {}
                Err(error) if error.is_disk_full() => return Err(ResultError::StoreFull),
                outcome => break outcome?,
            }
        };
        if !held {
            return Err(ResultError::LeaseLost);
        }
        self.sha256.update(&self.part.buffer);
        self.parts.push(PartInfo {
            rows: self.part.rows,
            bytes: count(self.part.buffer.len()),
            csv_bytes: self.part.csv_bytes,
            ndjson_bytes: self.part.ndjson_bytes,
            sha256: hex(&Sha256::digest(&self.part.buffer)),
        });
        self.part.buffer.clear();
        self.part = Part { buffer: std::mem::take(&mut self.part.buffer), ..Part::default() };
        Ok(())
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
