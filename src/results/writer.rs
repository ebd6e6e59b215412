//! Rows in, parts out: bounded memory, whatever the size of the result.
//!
//! While rows of the next part are gathered, a thread of the result's own compresses and stores the one before. A
//! result of a single part has none.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;

use crate::db::RetryingPool;
use crate::queue::Lease;
use crate::queue::lifecycle::end::FinishedResult;
use crate::results::rows;
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
    columns: Vec<Column>,
    limits: Limits,
    part: Part,
    keeper: Keeper,
    rows: u64,
    bytes: u64,
}

/// The rows of one part, as [`rows`] has them.
#[derive(Default)]
struct Part {
    buffer: Vec<u8>,
    rows: u64,
}

impl ResultWriter {
    /// Writes parts for `lease` into the queue's database.
    pub fn new(queue: RetryingPool, lease: Lease, columns: Vec<Column>, limits: Limits) -> ResultWriter {
        let shelf = Shelf {
            queue,
            lease,
            encoder: json::Encoder::new(&columns),
            width: columns.len(),
            compressor: None,
            sha256: Sha256::new(),
            parts: Vec::new(),
        };
        ResultWriter {
            columns,
            limits,
            part: Part::default(),
            keeper: Keeper::Here(Box::new(shelf)),
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
    /// [`ResultError::LeaseLost`] when a part was refused because somebody else has the job. An error may be that of an
    /// earlier part.
    pub fn push<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>>) -> Result<Pushed, ResultError> {
        if self.limits.row_limit.is_some_and(|limit| self.rows >= limit) {
            return Ok(Pushed::RowLimit);
        }
        let before = self.part.buffer.len();
        rows::append(&mut self.part.buffer, values)?;
        // A row without columns takes a byte: rows of no size would pass every limit.
        let size = count(self.part.buffer.len() - before).max(1);
        if self.bytes + size > self.limits.byte_limit {
            self.part.buffer.truncate(before);
            return Ok(Pushed::ByteLimit);
        }
        self.part.rows += 1;
        self.rows += 1;
        self.bytes += size;
        if self.part.buffer.len() >= PART_BYTES || self.part.rows >= PART_ROWS {
            let part = std::mem::take(&mut self.part);
            self.part.buffer = self.keeper.keep(part)?;
        }
        Ok(Pushed::Stored)
    }

    /// Writes what is left, and says what the result is made of.
    ///
    /// # Errors
    /// As [`ResultWriter::push`].
    pub fn finish(self, truncated: bool) -> Result<FinishedResult, ResultError> {
        let mut shelf = self.keeper.into_shelf()?;
        if self.part.rows > 0 {
            shelf.keep(&self.part)?;
        }
        let manifest = Manifest {
            columns: self.columns,
            parts: shelf.parts,
            rows: i64::try_from(self.rows).map_err(|_| ResultError::TooLarge)?,
            bytes: i64::try_from(self.bytes).map_err(|_| ResultError::TooLarge)?,
            truncated,
            sha256: hex(&shelf.sha256.finalize()),
        };
        manifest.finished()
    }
}

/// Where the shelf is at the moment.
enum Keeper {
    /// No part was full yet.
    Here(Box<Shelf>),
    /// On a thread of its own.
    Away(Away),
    /// An error took it.
    Gone,
}

impl Keeper {
    /// Has a part kept, and gives a buffer for the next one.
    fn keep(&mut self, part: Part) -> Result<Vec<u8>, ResultError> {
        if let Keeper::Here(_) = self
            && let Keeper::Here(shelf) = std::mem::replace(self, Keeper::Gone)
        {
            *self = Keeper::Away(Away::start(*shelf)?);
        }
        let Keeper::Away(away) = self else { return Err(ResultError::WriterFailed) };
        if let Some(buffer) = away.take(part) {
            return Ok(buffer);
        }
        // The thread has ended before its time: it says why.
        match std::mem::replace(self, Keeper::Gone).into_shelf() {
            Ok(_) => Err(ResultError::WriterFailed),
            Err(error) => Err(error),
        }
    }

    fn into_shelf(self) -> Result<Shelf, ResultError> {
        match self {
            Keeper::Here(shelf) => Ok(*shelf),
            Keeper::Away(away) => away.end(),
            Keeper::Gone => Err(ResultError::WriterFailed),
        }
    }
}

/// The thread `slowlane-parts`: at most one part waits for it, and it is waited for whatever becomes of the result.
/// Each of its own waits is bounded.
struct Away {
    full: Option<SyncSender<Part>>,
    empty: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<Shelf, ResultError>>>,
}

impl Away {
    fn start(mut shelf: Shelf) -> Result<Away, ResultError> {
        let (full, parts) = sync_channel::<Part>(0);
        let (back, empty) = channel();
        let thread = std::thread::Builder::new().name("slowlane-parts".to_owned()).spawn(move || {
            while let Ok(mut part) = parts.recv() {
                shelf.keep(&part)?;
                part.buffer.clear();
                // Nobody fills another one: then it isn't needed.
                let _ = back.send(part.buffer);
            }
            Ok(shelf)
        });
        let thread = thread.map_err(ResultError::Thread)?;
        Ok(Away { full: Some(full), empty, thread: Some(thread) })
    }

    /// `None` when the thread takes no more.
    fn take(&self, part: Part) -> Option<Vec<u8>> {
        self.full.as_ref()?.send(part).ok()?;
        Some(self.empty.try_recv().unwrap_or_default())
    }

    fn end(mut self) -> Result<Shelf, ResultError> {
        self.join().unwrap_or_else(|| Err(ResultError::WriterFailed))
    }

    /// A panic goes on in whoever waits.
    fn join(&mut self) -> Option<Result<Shelf, ResultError>> {
        self.full = None;
        Some(self.thread.take()?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.full = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that keeps a result's parts panicked");
        }
    }
}

/// Where parts go.
struct Shelf {
    queue: RetryingPool,
    lease: Lease,
    encoder: json::Encoder,
    /// Columns of a row.
    width: usize,
    /// Made with the first part.
    compressor: Option<Compressor<'static>>,
    sha256: Sha256,
    parts: Vec<PartInfo>,
}

impl Shelf {
    fn keep(&mut self, part: &Part) -> Result<(), ResultError> {
        let n = i32::try_from(self.parts.len()).map_err(|_| ResultError::TooLarge)?;
        let data = self.compress(&part.buffer)?;
        // A full disk is told at once: waiting makes no room.
        let written = self.queue.run(|connection| match store::write_part(connection, &self.lease, n, &data) {
            Err(error) if error.is_disk_full() => Ok(Err(ResultError::StoreFull)),
            Ok(false) => Ok(Err(ResultError::LeaseLost)),
            outcome => outcome.map(|_| Ok(())),
        });
        written??;
        self.sha256.update(&part.buffer);
        let mut info = PartInfo { rows: part.rows, bytes: count(part.buffer.len()), csv_bytes: 0, ndjson_bytes: 0 };
        rows::for_each(&part.buffer, self.width, part.rows, |values| {
            info.csv_bytes += count(csv::length(values));
            info.ndjson_bytes += count(self.encoder.length(values)) + 1;
        })?;
        self.parts.push(info);
        Ok(())
    }

    /// Each part carries a checksum, which decompressing it verifies.
    fn compress(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ResultError> {
        let compressor = match self.compressor.take() {
            Some(compressor) => self.compressor.insert(compressor),
            None => {
                let mut compressor = Compressor::new(ZSTD_LEVEL).map_err(ResultError::Compression)?;
                compressor.include_checksum(true).map_err(ResultError::Compression)?;
                self.compressor.insert(compressor)
            }
        };
        compressor.compress(bytes).map_err(ResultError::Compression)
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
