//! Rows into the target: all of them by one COPY, or in blocks, each under a savepoint, where rows may be refused.

use crate::kinds::import::batch::{Batch, LineMap, Place, Reject};
use crate::kinds::import::ndjson::Encoder;
use crate::kinds::import::records::Records;
use crate::kinds::import::refusal::{Names, is_about_a_row};
use crate::kinds::import::staging::{Merged, Staging};
use crate::kinds::import::unreadable::{CONVERT, NOT_UTF8};
use crate::kinds::import::{Imported, csv};
use crate::pq::{PqError, Session};
use crate::queue::model::ProgressBasis;
use crate::queue::{ErrorCode, JobError};
use crate::results::{Column, Limits, ResultWriter};
use crate::work::context::WorkContext;
use crate::work::progress::Report;
use crate::work::{QUERY_CANCELED, WorkError};

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
/// What is done about a last row that may be the beginning of one.
const NO_LINE_END: &str = "the last line has no line end, so the file may have been cut off there: compare its length; if it is \
                           whole, mend the row or end its line";
/// The savepoint of a block.
const SAVEPOINT: &str = "slowlane_block";
/// SQLSTATE of a NULL where none may be.
const NOT_NULL_VIOLATION: &str = "23502";

/// What rows are made of.
pub(super) enum Form {
    Csv(csv::Reader),
    Ndjson(Encoder),
}

impl Form {
    /// What the server has against a row, and what that says of the file.
    fn refusal(&self, batch: &Batch, n: usize, error: &PqError, names: &Names) -> Reject {
        let line = batch.rows.get(n).map_or(0, |row| row.line);
        let sqlstate = error.sqlstate.as_deref().unwrap_or_default();
        let reject = Reject::new(line, sqlstate, &reason(error), batch.original(n));
        let reject = reject.standing_for(batch.lines_of(n), "lines").about(names.column(error));
        match self {
            Form::Csv(reader) if batch.has_no_line_end(n) => {
                let row = batch.data_of(n, n.saturating_add(1));
                match reader.may_be_cut(row, sqlstate, reject.column.as_deref()) {
                    true => reject.of_a_torn_file().with_hint(NO_LINE_END),
                    false => reject,
                }
            }
            _ => reject,
        }
    }

    /// There were lines, and none of them can be read.
    fn is_unreadable(&self) -> bool {
        matches!(self, Form::Ndjson(encoder) if encoder.read_none())
    }
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
            Form::Csv(reader) => reader.fill(&mut self.records, batch, most_rows, most_bytes)?,
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
    /// The names by which the server speaks of what is stored.
    pub names: Names,
    /// How rows come into the table that were copied elsewhere.
    pub staging: Option<Staging>,
    /// Several COPYs do as well as one.
    pub may_split: bool,
}

impl Sink<'_> {
    fn set_timeout(&mut self, ctx: &WorkContext<'_>, further: &str) -> Result<(), WorkError> {
        let left = ctx.statement_ms_left();
        self.session.execute_batch(&format!("SET LOCAL statement_timeout = {left}; {further}"))?;
        Ok(())
    }

    /// All rows or none.
    pub fn load_all(&mut self, source: &mut Source<'_, '_>) -> Result<Imported, WorkError> {
        let mut imported = Imported::default();
        let mut batch = Batch::default();
        let (mut copied, mut lacking) = (0_u64, false);
        source.fill(&mut batch, usize::MAX, BATCH_BYTES)?;
        while batch.read() > 0 {
            self.set_timeout(source.ctx, "")?;
            copied = copied.saturating_add(self.piece(source, &mut batch, &mut imported.rows_read, &mut lacking)?);
        }
        let merged = match &self.staging {
            None => Merged { inserted: copied, updated: 0 },
            Some(_) => {
                source.report("storing rows");
                self.set_timeout(source.ctx, "")?;
                self.merge(lacking).map_err(|error| self.told(error, None))?
            }
        };
        imported.count(merged);
        self.set_timeout(source.ctx, "SET CONSTRAINTS ALL IMMEDIATE")?;
        Ok(imported)
    }

    fn merge(&mut self, lacking: bool) -> Result<Merged, PqError> {
        match &self.staging {
            Some(staging) => staging.merge(self.session, lacking),
            None => Ok(Merged::default()),
        }
    }

    /// One COPY of what is in `batch` and what follows, of all of it or of a piece. Says how many rows it stored.
    fn piece(
        &mut self,
        source: &mut Source<'_, '_>,
        batch: &mut Batch,
        read: &mut u64,
        lacking: &mut bool,
    ) -> Result<u64, WorkError> {
        let header = source.header();
        let mut copy = self.session.copy_in(&self.copy)?;
        let mut lines = LineMap::behind(u64::from(!header.is_empty()));
        let mut sent = 0_u64;
        let mut refused = None;
        let mut outcome = copy.send(header).map_err(WorkError::from);
        while outcome.is_ok() && batch.read() > 0 && !(self.may_split && (sent >= PIECE_BYTES || lines.is_full())) {
            batch.rows.iter().for_each(|row| lines.push(row));
            *lacking |= batch.lacking;
            *read = read.saturating_add(u64::try_from(batch.rows.len()).unwrap_or(u64::MAX));
            sent = sent.saturating_add(u64::try_from(batch.data.len()).unwrap_or(u64::MAX));
            outcome = copy.send(&batch.data).map_err(WorkError::from);
            if let Some(reject) = batch.refused.first() {
                refused = Some(WorkError::Fail(reject.as_the_end()));
                break;
            }
            if outcome.is_ok() {
                outcome = source.fill(batch, usize::MAX, BATCH_BYTES);
            }
        }
        let outcome = match refused {
            // What is wrong with a row before it comes first.
            Some(error) if outcome.is_ok() && self.may_split => {
                copy.finish().map_err(|error| self.told(error, Some(&lines)))?;
                return Err(error);
            }
            Some(error) => outcome.and(Err(error)),
            None => outcome,
        };
        match outcome {
            Ok(()) => copy.finish().map_err(|error| self.told(error, Some(&lines))),
            Err(error) => match (copy.abandon()?, error) {
                // A statement that was stopped says less than why it was.
                (Some(first), WorkError::Fail(_) | WorkError::Retry(_))
                    if first.sqlstate.as_deref() != Some(QUERY_CANCELED) =>
                {
                    Err(self.told(first, Some(&lines)))
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
            let header = source.header();
            let mut block = Block { batch: &batch, header, form: &source.form, refused, limit: rejects.left() };
            let stored = if block.over() {
                Ok(Merged::default())
            } else {
                self.load_block(source.ctx, &mut block, 0, batch.rows.len())
            };
            // One that has several lines counts as several.
            let further = block.refused_rows().saturating_sub(u64::try_from(block.refused.len()).unwrap_or(u64::MAX));
            imported.rows_read = imported.rows_read.saturating_add(further);
            // What was refused so far is told, however it ends.
            rejects.take(block.refused)?;
            if let Some(error) = rejects.end() {
                return Err(rejects.give_up(error));
            }
            imported.count(stored?);
        }
        if let Some(first) = rejects.first.as_ref().filter(|_| source.form.is_unreadable()) {
            let error = first.as_the_end();
            return Err(rejects.give_up(error));
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
        match self.try_rows(block, from, to)? {
            Ok(merged) => {
                let empty = if self.staging.is_some() { Staging::empty() } else { String::new() };
                self.session.execute_batch(&format!("RELEASE SAVEPOINT {SAVEPOINT}; {empty}"))?;
                Ok(merged)
            }
            Err(error) if is_about_a_row(&error) => {
                self.session.execute_batch(&format!("ROLLBACK TO {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}"))?;
                if to - from == 1 {
                    block.refused.push(block.form.refusal(block.batch, from, &error, &self.names));
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

    /// Stores some rows of a block, or says what the server has against one of them.
    ///
    /// # Errors
    /// What it has against the COPY itself: that is no row's fault, and ends the job.
    fn try_rows(&mut self, block: &Block<'_>, from: usize, to: usize) -> Result<Result<Merged, PqError>, WorkError> {
        let mut copy = self.session.copy_in(&self.copy)?;
        copy.send(block.header)?;
        copy.send(block.batch.data_of(from, to))?;
        Ok(match (copy.finish(), &self.staging) {
            (Ok(copied), None) => Ok(Merged { inserted: copied, updated: 0 }),
            (Ok(_), Some(_)) => self.merge(block.batch.lacking),
            (Err(error), _) => Err(error),
        })
    }

    /// The error with what is known of the place of the row, and of the column.
    fn told(&self, error: PqError, lines: Option<&LineMap>) -> WorkError {
        let line = self.names.line(&error);
        let place = line.and_then(|line| lines?.place(line));
        let column = self.names.column(&error);
        let hint = self.lacks_a_value(&error, column.as_deref()).filter(|_| error.hint.is_none());
        let tell = |error: JobError| {
            let error = with_what_to_do(error);
            let message = match place {
                Some(Place::On(line)) => format!("line {line}: {}", error.message),
                Some(Place::Before(line)) => format!("before line {line}: {}", error.message),
                None => error.message,
            };
            JobError { message, column, hint: error.hint.or(hint), ..error }.bounded()
        };
        match WorkError::from(error) {
            WorkError::Fail(error) => WorkError::Fail(tell(error)),
            WorkError::Retry(error) => WorkError::Retry(tell(error)),
            other => other,
        }
    }

    /// What to do about a column that may not be NULL, has no default, and isn't in the file.
    fn lacks_a_value(&self, error: &PqError, column: Option<&str>) -> Option<String> {
        let column = column.filter(|column| !self.names.columns.iter().any(|name| name == column))?;
        let not_null = error.sqlstate.as_deref() == Some(NOT_NULL_VIOLATION);
        not_null.then(|| match &self.staging {
            Some(_) => format!(
                "a row that isn't in the table can't be inserted without {column}: bring it in the file, or have such rows \
                 refused one by one by a reject_limit"
            ),
            None => format!("bring {column} in the file, give it a default, or let it be NULL"),
        })
    }
}

impl Source<'_, '_> {
    /// What is sent before the rows.
    fn header(&self) -> &'static [u8] {
        match self.form {
            Form::Csv(_) => CSV_HEADER,
            Form::Ndjson(_) => b"",
        }
    }
}

/// The rows that are stored together, and those that aren't.
struct Block<'b> {
    batch: &'b Batch,
    header: &'static [u8],
    form: &'b Form,
    refused: Vec<Reject>,
    /// More refused ones than this, and it is over.
    limit: u64,
}

impl Block<'_> {
    fn over(&self) -> bool {
        // Behind what ends the job anyway nothing is read, and what is before it is told.
        let left_out = self.refused.iter().filter(|reject| !reject.ends_the_job());
        left_out.fold(0, |rows, reject| reject.rows.saturating_add(rows)) > self.limit
    }

    fn refused_rows(&self) -> u64 {
        self.refused.iter().fold(0, |rows, reject| rows.saturating_add(reject.rows))
    }
}

/// Rows that were refused, on their way into the job's log and its result.
struct Rejects<'c, 'a> {
    ctx: &'c WorkContext<'a>,
    writer: ResultWriter,
    limit: u64,
    total: u64,
    first: Option<Reject>,
    /// The first one that ends the job.
    last: Option<Reject>,
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
            column("column", 25, "text"),
            column("message", 25, "text"),
            column("row", 25, "text"),
        ];
        let writer = ctx.result_writer(columns, Limits { row_limit: None, byte_limit: u64::MAX });
        Rejects { ctx, writer, limit, total: 0, first: None, last: None }
    }

    /// How many more there may be.
    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.total)
    }

    fn take(&mut self, mut refused: Vec<Reject>) -> Result<(), WorkError> {
        refused.sort_by_key(|reject| reject.line);
        for reject in &refused {
            let Reject { line, sqlstate, column, message, text, .. } = reject;
            let about = column.as_ref().map_or_else(String::new, |column| format!(" (column {column})"));
            self.ctx.log_refused(sqlstate, &format!("line {line}: {message}{about}: {text}"));
            let line = line.to_string();
            let values = [Some(&line), Some(sqlstate), column.as_ref(), Some(message), Some(text)];
            self.writer.push(values.into_iter().map(|value| value.map(String::as_bytes)))?;
        }
        self.total = refused.iter().fold(self.total, |total, reject| total.saturating_add(reject.rows));
        self.last = self.last.take().or_else(|| refused.iter().find(|reject| reject.ends_the_job()).cloned());
        self.first = self.first.take().or_else(|| refused.into_iter().next());
        Ok(())
    }

    /// Why the job is to end, if it is.
    fn end(&self) -> Option<JobError> {
        if let Some(last) = &self.last {
            return Some(last.as_the_end());
        }
        if self.total <= self.limit {
            return None;
        }
        let (line, reason) = self.first.as_ref().map_or((0, ""), |first| (first.line, first.message.as_str()));
        let message = format!(
            "more than {} rows were refused, and nothing was stored; the first one is on line {line}: {reason}",
            self.limit
        );
        let mut error = JobError::new(ErrorCode::TooManyRejects, message);
        if let Some(first) = &self.first {
            (error.sqlstate, error.column) = (Some(first.sqlstate.clone()), first.column.clone());
        }
        Some(error)
    }

    /// The end of the job: those that were refused so far are its result all the same, which doesn't look complete.
    fn give_up(self, error: JobError) -> WorkError {
        let result = "the job's result has each row that was refused up to there";
        let hint = error.hint.as_ref().map_or(result.to_owned(), |hint| format!("{hint}; {result}"));
        match self.writer.finish(true) {
            Ok(result) => {
                self.ctx.keep_result_of_failure(result);
                WorkError::Fail(error.with_hint(hint))
            }
            Err(error) => error.into(),
        }
    }

    fn keep(self) -> Result<(), WorkError> {
        let result = self.writer.finish(false)?;
        self.ctx.keep_result(result);
        Ok(())
    }
}

fn reason(error: &PqError) -> String {
    match &error.detail {
        Some(detail) => format!("{} ({detail})", error.message),
        None => error.message.clone(),
    }
}

/// What helps against bytes that are no text.
fn with_what_to_do(error: JobError) -> JobError {
    if error.sqlstate.as_deref() != Some(NOT_UTF8) || error.hint.is_some() {
        return error;
    }
    let is_zero = error.message.ends_with("0x00");
    error.with_hint(if is_zero { "no text has zeros: remove them, such as by tr -d '\\000'" } else { CONVERT })
}
