//! Rows into the target: all of them by one COPY, or in blocks, each under a savepoint, where rows may be refused.

use crate::kinds::context::WorkContext;
use crate::kinds::import::batch::{Batch, LineMap, Place, Reject};
use crate::kinds::import::ndjson::Encoder;
use crate::kinds::import::records::Records;
use crate::kinds::import::table::{Conflict, Merged};
use crate::kinds::import::{Imported, csv};
use crate::kinds::{QUERY_CANCELED, WorkError};
use crate::pq::{PqError, PqErrorKind, Session};
use crate::queue::job::ProgressBasis;
use crate::queue::progress::Report;
use crate::queue::{ErrorCode, JobError};
use crate::results::{Column, Limits, ResultWriter};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 5_000;
/// Bytes after which a block ends, however few its rows are: 8 MiB.
const BLOCK_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that are handed to a COPY at a time.
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes after which a COPY ends and another begins, where that makes no difference: an error shows at the end of one.
const PIECE_BYTES: u64 = 64 * 1024 * 1024;
/// The first line of what is sent as CSV. It has the server expect line feeds, so that it counts the lines of a row as
/// we do.
const CSV_HEADER: &[u8] = b"\n";
/// The savepoint of a block.
const SAVEPOINT: &str = "slowlane_block";

/// What rows are made of.
pub(super) enum Form {
    Csv,
    Ndjson(Encoder),
}

/// The file, and how far it is read.
pub(super) struct Source<'c, 'a> {
    pub ctx: &'c WorkContext<'a>,
    pub records: Records<'c>,
    pub form: Form,
    pub total: i64,
}

impl Source<'_, '_> {
    /// The next rows; none at the end.
    fn fill(&mut self, batch: &mut Batch, most_rows: usize, most_bytes: usize) -> Result<(), WorkError> {
        self.ctx.check()?;
        batch.clear();
        match &self.form {
            Form::Csv => csv::fill(&mut self.records, batch, most_rows, most_bytes)?,
            Form::Ndjson(encoder) => encoder.fill(&mut self.records, batch, most_rows, most_bytes)?,
        }
        Ok(())
    }

    fn report(&self, phase: &str) {
        report(self.ctx, phase, self.records.position(), self.total);
    }
}

/// Says how many bytes of the upload were read.
pub(super) fn report(ctx: &WorkContext<'_>, phase: &str, done: i64, total: i64) {
    ctx.progress(Report {
        phase: phase.to_owned(),
        done,
        total: Some(total),
        unit: "bytes".to_owned(),
        basis: ProgressBasis::Exact,
    });
}

/// Where the rows go.
pub(super) struct Sink<'s> {
    pub session: &'s mut Session,
    /// The COPY.
    pub copy: String,
    /// What its CONTEXT calls its table.
    pub copied: String,
    /// How rows come into the table that were copied elsewhere.
    pub conflict: Option<Conflict>,
    /// Several COPYs do as well as one.
    pub may_split: bool,
}

impl Sink<'_> {
    fn set_timeout(&mut self, ctx: &WorkContext<'_>, further: &str) -> Result<(), WorkError> {
        let left = ctx.remaining().as_millis().max(1);
        self.session.execute_batch(&format!("SET LOCAL statement_timeout = {left}; {further}"))?;
        Ok(())
    }

    /// All rows or none.
    pub fn load_all(&mut self, source: &mut Source<'_, '_>) -> Result<Imported, WorkError> {
        let mut imported = Imported::default();
        let mut batch = Batch::default();
        let mut copied = 0_u64;
        source.fill(&mut batch, usize::MAX, BATCH_BYTES)?;
        while batch.read() > 0 {
            self.set_timeout(source.ctx, "")?;
            copied = copied.saturating_add(self.piece(source, &mut batch, &mut imported.rows_read)?);
        }
        let merged = match &self.conflict {
            None => Merged { inserted: copied, updated: 0 },
            Some(_) => {
                source.report("storing rows");
                self.set_timeout(source.ctx, "")?;
                self.merge()?
            }
        };
        imported.count(merged);
        self.set_timeout(source.ctx, "SET CONSTRAINTS ALL IMMEDIATE")?;
        Ok(imported)
    }

    fn merge(&mut self) -> Result<Merged, PqError> {
        match &self.conflict {
            Some(conflict) => conflict.merge(self.session),
            None => Ok(Merged::default()),
        }
    }

    /// One COPY of what is in `batch` and what follows, of all of it or of a piece. Says how many rows it stored.
    fn piece(&mut self, source: &mut Source<'_, '_>, batch: &mut Batch, read: &mut u64) -> Result<u64, WorkError> {
        let header = source.header();
        let mut copy = self.session.copy_in(&self.copy)?;
        let mut lines = LineMap::behind(u64::from(!header.is_empty()));
        let mut sent = 0_u64;
        let mut refused = None;
        let mut outcome = copy.send(header).map_err(WorkError::from);
        while outcome.is_ok() && batch.read() > 0 && !(self.may_split && (sent >= PIECE_BYTES || lines.is_full())) {
            batch.rows.iter().for_each(|row| lines.push(row));
            *read = read.saturating_add(u64::try_from(batch.rows.len()).unwrap_or(u64::MAX));
            sent = sent.saturating_add(u64::try_from(batch.data.len()).unwrap_or(u64::MAX));
            outcome = copy.send(&batch.data).map_err(WorkError::from);
            if let Some(reject) = batch.refused.first() {
                refused = Some(refused_row(reject));
                break;
            }
            if outcome.is_ok() {
                outcome = source.fill(batch, usize::MAX, BATCH_BYTES);
            }
        }
        let outcome = match refused {
            // What is wrong with a row before it comes first.
            Some(error) if outcome.is_ok() && self.may_split => {
                copy.finish().map_err(|error| at_line(error, &self.copied, &lines))?;
                return Err(error);
            }
            Some(error) => outcome.and(Err(error)),
            None => outcome,
        };
        match outcome {
            Ok(()) => copy.finish().map_err(|error| at_line(error, &self.copied, &lines)),
            Err(error) => match (copy.abandon()?, error) {
                // A statement that was stopped says less than why it was.
                (Some(first), WorkError::Fail(_) | WorkError::Retry(_))
                    if first.sqlstate.as_deref() != Some(QUERY_CANCELED) =>
                {
                    Err(at_line(first, &self.copied, &lines))
                }
                (_, error) => Err(error),
            },
        }
    }

    /// As many rows as can be stored; no more than `limit` of them may be refused.
    pub fn load_most(&mut self, source: &mut Source<'_, '_>, limit: u64) -> Result<Imported, WorkError> {
        let mut rejects = Rejects::new(source.ctx, limit);
        let mut imported = Imported::default();
        let mut batch = Batch::default();
        // What a row violates is to show with its block.
        self.set_timeout(source.ctx, "SET CONSTRAINTS ALL IMMEDIATE")?;
        loop {
            source.fill(&mut batch, BLOCK_ROWS, BLOCK_BYTES)?;
            if batch.read() == 0 {
                break;
            }
            imported.rows_read = imported.rows_read.saturating_add(u64::try_from(batch.read()).unwrap_or(u64::MAX));
            let refused = std::mem::take(&mut batch.refused);
            let mut block = Block { batch: &batch, header: source.header(), refused, limit: rejects.left() };
            let stored = if block.over() {
                Ok(Merged::default())
            } else {
                self.load_block(source.ctx, &mut block, 0, batch.rows.len())
            };
            // What was refused so far is told, however it ends.
            rejects.take(block.refused)?;
            if rejects.are_too_many() {
                return Err(rejects.give_up());
            }
            imported.count(stored?);
        }
        self.set_timeout(source.ctx, "")?;
        imported.rejected = rejects.total;
        rejects.keep()?;
        Ok(imported)
    }

    /// Stores some rows of a block, but for those that are refused: halves of what fails are tried, down to the row.
    fn load_block(
        &mut self,
        ctx: &WorkContext<'_>,
        block: &mut Block<'_>,
        from: usize,
        to: usize,
    ) -> Result<Merged, WorkError> {
        if from >= to || block.over() {
            return Ok(Merged::default());
        }
        ctx.check()?;
        self.set_timeout(ctx, &format!("SAVEPOINT {SAVEPOINT}"))?;
        match self.try_rows(block, from, to) {
            Ok(merged) => {
                let empty = if self.conflict.is_some() { Conflict::empty_staging() } else { String::new() };
                self.session.execute_batch(&format!("RELEASE SAVEPOINT {SAVEPOINT}; {empty}"))?;
                Ok(merged)
            }
            Err(error) if is_about_a_row(&error) => {
                self.session.execute_batch(&format!("ROLLBACK TO {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}"))?;
                if to - from == 1 {
                    let line = block.batch.rows.get(from).map_or(0, |row| row.line);
                    let sqlstate = error.sqlstate.as_deref().unwrap_or_default();
                    block.refused.push(Reject::new(line, sqlstate, &reason(&error), block.batch.original(from)));
                    return Ok(Merged::default());
                }
                let middle = from + (to - from) / 2;
                let first = self.load_block(ctx, block, from, middle)?;
                let second = self.load_block(ctx, block, middle, to)?;
                Ok(Merged {
                    inserted: first.inserted.saturating_add(second.inserted),
                    updated: first.updated.saturating_add(second.updated),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_rows(&mut self, block: &Block<'_>, from: usize, to: usize) -> Result<Merged, PqError> {
        let mut copy = self.session.copy_in(&self.copy)?;
        copy.send(block.header)?;
        copy.send(block.batch.data_of(from, to))?;
        let copied = copy.finish()?;
        match &self.conflict {
            None => Ok(Merged { inserted: copied, updated: 0 }),
            Some(_) => self.merge(),
        }
    }
}

impl Source<'_, '_> {
    /// What is sent before the rows.
    fn header(&self) -> &'static [u8] {
        match self.form {
            Form::Csv => CSV_HEADER,
            Form::Ndjson(_) => b"",
        }
    }
}

/// The rows that are stored together, and those that aren't.
struct Block<'b> {
    batch: &'b Batch,
    header: &'static [u8],
    refused: Vec<Reject>,
    /// More refused ones than this, and it is over.
    limit: u64,
}

impl Block<'_> {
    fn over(&self) -> bool {
        u64::try_from(self.refused.len()).unwrap_or(u64::MAX) > self.limit
    }
}

/// Rows that were refused, on their way into the job's log and its result.
struct Rejects<'c, 'a> {
    ctx: &'c WorkContext<'a>,
    writer: ResultWriter,
    limit: u64,
    total: u64,
    first: Option<Reject>,
}

impl<'c, 'a> Rejects<'c, 'a> {
    fn new(ctx: &'c WorkContext<'a>, limit: u64) -> Rejects<'c, 'a> {
        let column = |name: &str, type_oid, type_name: &str| Column {
            name: name.to_owned(),
            type_oid,
            type_name: type_name.to_owned(),
        };
        let columns = vec![
            column("line", 20, "bigint"),
            column("sqlstate", 25, "text"),
            column("message", 25, "text"),
            column("row", 25, "text"),
        ];
        let writer = ctx.result_writer(columns, Limits { row_limit: None, byte_limit: u64::MAX });
        Rejects { ctx, writer, limit, total: 0, first: None }
    }

    /// How many more there may be.
    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.total)
    }

    fn take(&mut self, mut refused: Vec<Reject>) -> Result<(), WorkError> {
        refused.sort_by_key(|reject| reject.line);
        for reject in &refused {
            self.ctx
                .log_refused(&reject.sqlstate, &format!("line {}: {}: {}", reject.line, reject.message, reject.text));
            let line = reject.line.to_string();
            let values = [line.as_str(), &reject.sqlstate, &reject.message, &reject.text];
            self.writer.push(values.into_iter().map(|value| Some(value.as_bytes())))?;
        }
        self.total = self.total.saturating_add(u64::try_from(refused.len()).unwrap_or(u64::MAX));
        if self.first.is_none() {
            self.first = refused.into_iter().next();
        }
        Ok(())
    }

    fn are_too_many(&self) -> bool {
        self.total > self.limit
    }

    /// The end of the job: those that were refused so far are its result all the same, which doesn't look complete.
    fn give_up(self) -> WorkError {
        let (line, reason) = self.first.as_ref().map_or((0, ""), |first| (first.line, first.message.as_str()));
        let message = format!(
            "more than {} rows were refused, and nothing was stored; the first one is on line {line}: {reason}",
            self.limit
        );
        let mut error = JobError::new(ErrorCode::TooManyRejects, message);
        error.sqlstate = self.first.map(|first| first.sqlstate);
        match self.writer.finish(true) {
            Ok(manifest) => {
                self.ctx.keep_result_of_failure(manifest);
                WorkError::Fail(error.with_hint("the job's result has each row that was refused up to there"))
            }
            Err(error) => error.into(),
        }
    }

    fn keep(self) -> Result<(), WorkError> {
        let manifest = self.writer.finish(false)?;
        self.ctx.keep_result(manifest);
        Ok(())
    }
}

/// The error is one of a row's data, and others may be stored: a data exception, a violated constraint, what a trigger
/// raised, a value that is too large.
fn is_about_a_row(error: &PqError) -> bool {
    let class = error.sqlstate.as_deref().and_then(|sqlstate| sqlstate.get(..2));
    error.kind == PqErrorKind::Server && class.is_some_and(|class| ["22", "23", "44", "54", "P0"].contains(&class))
}

fn reason(error: &PqError) -> String {
    match &error.detail {
        Some(detail) => format!("{} ({detail})", error.message),
        None => error.message.clone(),
    }
}

fn refused_row(refused: &Reject) -> WorkError {
    let mut error = JobError::new(ErrorCode::InvalidRow, format!("line {}: {}", refused.line, refused.message));
    error.sqlstate = Some(refused.sqlstate.clone());
    error.detail = Some(refused.text.clone());
    WorkError::Fail(error)
}

/// Says which line an error is about, where the server's CONTEXT does.
fn at_line(error: PqError, copied: &str, lines: &LineMap) -> WorkError {
    let context = error.context.clone().unwrap_or_default();
    let place = context.lines().find_map(|line| line.strip_prefix("COPY ")?.strip_prefix(copied));
    let line = place.and_then(|place| {
        let digits = place.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        lines.place(digits.get(..end)?.parse().ok()?)
    });
    let tell = |error: JobError| {
        let message = match line {
            Some(Place::On(line)) => format!("line {line}: {}", error.message),
            Some(Place::Before(line)) => format!("before line {line}: {}", error.message),
            None => return error,
        };
        JobError { message, ..error }.bounded()
    };
    match WorkError::from(error) {
        WorkError::Fail(error) => WorkError::Fail(tell(error)),
        WorkError::Retry(error) => WorkError::Retry(tell(error)),
        other => other,
    }
}
