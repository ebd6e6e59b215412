//! `query`: one statement that returns rows, sent as it is, in a read-only transaction; its rows are the result.
//!
//! The transaction is rolled back: what the server lets a read-only one change all the same (a large object, the table
//! of an EXPLAIN ANALYZE) doesn't stay. A serializable one is deferrable, so that no anomaly could be found at its end
//! only.
//!
//! The caller's text is never wrapped or joined with ours, and travels as one statement of the extended protocol.
//! What only Postgres can know (syntax, tables, types) ends the job, not the request.

use std::ffi::CString;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::kinds::planning::{Looked, look_at};
use crate::kinds::prepare_error::PrepareError;
use crate::kinds::prepared::{Prepared, type_names};
use crate::kinds::returns::{not_allowed, returns_rows};
use crate::kinds::sql::first_word;
use crate::kinds::{hints, params, reads};
use crate::pq::{self, Canceller, Chunk, PqError, PqErrorKind, Session};
use crate::queue::model::ProgressBasis;
use crate::queue::{ErrorCode, JobError};
use crate::results::{Column, Limits, Pushed, ResultWriter};
use crate::target::prologue::ROW_FORM_SQL;
use crate::work::context::WorkContext;
use crate::work::progress::Report;
use crate::work::validation::Validation;
use crate::work::{ArgError, QUERY_CANCELED, Work, WorkError};

/// Uncompressed bytes of a result when the caller names no limit: 1 GiB.
pub const DEFAULT_BYTE_LIMIT: u64 = 1024 * 1024 * 1024;
/// The arguments of a `query`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// One statement that returns rows, sent as it is.
    pub sql: String,
    /// Values for `$1`, `$2` and so on; each keeps the literal that you wrote.
    #[serde(default)]
    #[schema(value_type = Vec<serde_json::Value>)]
    pub params: Vec<Box<RawValue>>,
    /// Rows to keep at most; all of them by default.
    #[serde(default)]
    pub row_limit: Option<u64>,
    /// Uncompressed bytes to keep at most. Defaults to 1 GiB, which is also the most.
    #[serde(default)]
    pub byte_limit: Option<u64>,
    /// What happens at a limit: the result ends there and says so (`truncate`, the default), or the job fails.
    #[serde(default)]
    pub on_limit: OnLimit,
}

/// What happens when a result reaches a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLimit {
    /// It ends there, and says so.
    #[default]
    Truncate,
    /// The job fails, and keeps nothing.
    Fail,
}

impl Work for Query {
    const KIND: &'static str = "query";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    const PRODUCES_RESULT: bool = true;
    const VALIDATES: bool = true;
    type Output = Option<()>;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let mut errors = Vec::new();
        if first_word(&self.sql).is_none() {
            errors.push(ArgError::new("/sql", "expected one SQL statement that returns rows"));
        }
        if self.row_limit == Some(0) {
            errors.push(ArgError::new("/row_limit", "expected 1 or more"));
        }
        if self.byte_limit.is_some_and(|limit| limit == 0 || limit > DEFAULT_BYTE_LIMIT) {
            errors.push(ArgError::new("/byte_limit", format!("expected 1 to {DEFAULT_BYTE_LIMIT}")));
        }
        errors.extend(params::check("/params", &self.params));
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Option<()>, WorkError> {
        let mut work = ctx.session()?;
        let (session, canceller, close) = work.split();
        session.execute_batch(&format!("BEGIN TRANSACTION READ ONLY, DEFERRABLE; {ROW_FORM_SQL}"))?;
        let refused = |error: PqError| not_a_query(error, &self.sql);
        let prepared = Prepared::new(session, &self.sql, &self.params).map_err(|error| error.or_server(refused))?;
        returns_rows(&prepared, &self.sql)?;
        reads::check_explained(session, &self.sql, &prepared.parameters)
            .map_err(|error| hints::for_reader(error, true))?;
        let mut sink = Sink::new(ctx, self, &prepared.columns, column_types(session, &prepared.columns)?);
        prepared.parse(session)?;
        ctx.check()?;
        let outcome = stream(session, (&self.sql, &prepared.values), canceller, close, &mut sink)?;
        if !*close {
            end_transaction(session)?;
        }
        sink.keep(outcome)?;
        Ok(None)
    }

    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let mut session = ctx.session()?;
        let looked = Looked {
            at: "/args",
            sql: &self.sql,
            params: &self.params,
            settings: ROW_FORM_SQL,
            reads: true,
            returns_rows: true,
            refused: not_a_query,
        };
        Validation::of(vec![look_at(&mut session, ctx, &looked)])
    }
}

pub(super) fn not_a_query(error: PqError, sql: &str) -> WorkError {
    match error.kind {
        PqErrorKind::Copy => not_allowed("COPY doesn't return rows", hints::COPY),
        _ => hints::for_query(error, sql),
    }
}

/// What ended the stream of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    LastRow,
    RowLimit,
    ByteLimit,
}

fn stream(
    session: &mut Session,
    (sql, values): (&str, &[Option<CString>]),
    canceller: &mut Canceller,
    close: &mut bool,
    sink: &mut Sink<'_, '_>,
) -> Result<Ended, WorkError> {
    let refused = |error| PrepareError::of_run(error).or_server(|error| not_a_query(error, sql));
    let mut rows = session.stream(values).map_err(refused)?;
    let mut ended = Ended::LastRow;
    loop {
        match rows.next_chunk() {
            Ok(None) if ended == Ended::LastRow && !rows.returned_rows() => {
                return Err(not_allowed("this statement returns no rows", hints::of_no_rows(sql)));
            }
            Ok(None) => return Ok(ended),
            // What still comes after a limit is read and dropped, until the cancel has arrived.
            Ok(Some(_)) if ended != Ended::LastRow => {}
            Ok(Some(chunk)) => {
                ended = sink.take(&chunk)?;
                if ended != Ended::LastRow {
                    *close = true;
                    if let Err(error) = canceller.cancel() {
                        log::debug!("a statement at its limit could not be cancelled: {error}");
                    }
                }
            }
            Err(error) if ended != Ended::LastRow && error.sqlstate.as_deref() == Some(QUERY_CANCELED) => {
                return Ok(ended);
            }
            Err(error) => return Err(refused(error)),
        }
    }
}

/// The rows are complete only when the transaction that they were read in ended as we say.
fn end_transaction(session: &mut Session) -> Result<(), WorkError> {
    if session.transaction_status() != pq::TransactionStatus::InTransaction {
        let hint = "a query runs in a transaction of its own: leave out what begins or ends one";
        return Err(not_allowed("the statement ended the transaction that it ran in", hint));
    }
    session.execute_batch("ROLLBACK")?;
    Ok(())
}

/// Where rows go: counted, told as progress, and kept.
struct Sink<'s, 'c> {
    ctx: &'s WorkContext<'c>,
    query: &'s Query,
    writer: ResultWriter,
}

impl<'s, 'c> Sink<'s, 'c> {
    fn new(ctx: &'s WorkContext<'c>, query: &'s Query, columns: &[pq::Column], types: Vec<String>) -> Sink<'s, 'c> {
        let columns = columns
            .iter()
            .zip(types)
            .map(|(column, type_name)| Column { name: column.name.clone(), type_oid: column.type_oid, type_name })
            .collect();
        let limits = Limits { row_limit: query.row_limit, byte_limit: query.byte_limit.unwrap_or(DEFAULT_BYTE_LIMIT) };
        Sink { ctx, query, writer: ctx.result_writer(columns, limits) }
    }

    fn take(&mut self, chunk: &Chunk) -> Result<Ended, WorkError> {
        self.ctx.check()?;
        for row in 0..chunk.rows() {
            match self.writer.push((0..chunk.columns()).map(|column| chunk.value(row, column)))? {
                Pushed::Stored => {}
                Pushed::RowLimit => return Ok(Ended::RowLimit),
                Pushed::ByteLimit => return Ok(Ended::ByteLimit),
            }
        }
        self.ctx.progress(Report {
            phase: "streaming rows".to_owned(),
            done: i64::try_from(self.writer.rows()).unwrap_or(i64::MAX),
            total: None,
            unit: "rows".to_owned(),
            basis: ProgressBasis::None,
        });
        Ok(Ended::LastRow)
    }

    fn keep(self, ended: Ended) -> Result<(), WorkError> {
        let truncated = ended != Ended::LastRow;
        if truncated && self.query.on_limit == OnLimit::Fail {
            let limit = if ended == Ended::RowLimit { "row_limit" } else { "byte_limit" };
            let error = JobError::new(ErrorCode::LimitExceeded, format!("the result is larger than {limit}"));
            return Err(WorkError::Fail(error.with_hint("raise the limit, or set on_limit to \"truncate\"")));
        }
        let (rows, bytes) = (self.writer.rows(), self.writer.bytes());
        let result = self.writer.finish(truncated)?;
        self.ctx.count(|statistics| {
            statistics.rows_returned = i64::try_from(rows).unwrap_or(i64::MAX);
            statistics.result_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        });
        self.ctx.keep_result(result);
        Ok(())
    }
}

fn column_types(session: &mut Session, columns: &[pq::Column]) -> Result<Vec<String>, WorkError> {
    let types: Vec<(u32, i32)> = columns.iter().map(|column| (column.type_oid, column.type_modifier)).collect();
    Ok(type_names(session, &types)?)
}
