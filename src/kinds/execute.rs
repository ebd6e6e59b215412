//! `execute`: statements that change data, all of them in one transaction, or none.
//!
//! Each of the caller's texts travels alone, as it is. Transaction control and COPY are refused before anything is
//! stored; what gets past that is caught before our COMMIT, which is only sent while the transaction is still the one
//! that was begun. It is committed exactly once: an attempt that ended unknown may be repeated.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::kinds::planning::{Looked, look_at};
use crate::kinds::prepare_error::PrepareError;
use crate::kinds::prepared::Prepared;
use crate::kinds::sql::{explained, first_words};
use crate::kinds::{hints, params, reads};
use crate::pq::{PqError, PqErrorKind, Session, TransactionStatus};
use crate::queue::model::ProgressBasis;
use crate::queue::{ErrorCode, JobError};
use crate::work::context::{Warning, Warnings, WorkContext};
use crate::work::progress::Report;
use crate::work::validation::Validation;
use crate::work::{ArgError, Work, WorkError, exactly_once};

mod left_out;

use left_out::Before;

/// The most statements in one job.
pub const MAX_STATEMENTS: usize = 1_000;

/// The arguments of an `execute`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    /// 1 to 1,000 statements, run in this order.
    pub statements: Vec<ExecuteStatement>,
}

/// One statement.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteStatement {
    /// One statement, sent as it is. Rows that it returns are counted and dropped.
    pub sql: String,
    /// Values for `$1`, `$2` and so on; each keeps the literal that you wrote.
    #[serde(default)]
    #[schema(value_type = Vec<serde_json::Value>)]
    pub params: Vec<Box<RawValue>>,
}

/// What an `execute` did.
#[derive(Debug, Serialize)]
pub struct Executed {
    /// In the order of the arguments.
    pub statements: Vec<StatementCount>,
}

/// What one statement did.
#[derive(Debug, Serialize)]
pub struct StatementCount {
    /// What the server calls it, such as `INSERT` or `CREATE TABLE`.
    pub command: String,
    /// Rows that it changed.
    pub rows_affected: i64,
    /// Rows that it returned.
    pub rows_returned: i64,
    /// What the server warned of, such as a table or a right that it left out: the first twenty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// How many warnings there were, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning_count: Option<u64>,
}

impl Work for Execute {
    const KIND: &'static str = "execute";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    const VALIDATES: bool = true;
    type Output = Executed;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let mut errors = Vec::new();
        if self.statements.is_empty() || self.statements.len() > MAX_STATEMENTS {
            errors.push(ArgError::new("/statements", format!("expected 1 to {MAX_STATEMENTS} statements")));
        }
        for (n, statement) in self.statements.iter().enumerate() {
            if let Some(detail) = refusal(&statement.sql) {
                errors.push(ArgError::new(format!("/statements/{n}/sql"), detail));
            }
            errors.extend(params::check(&format!("/statements/{n}/params"), &statement.params));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Executed, WorkError> {
        let mut work = ctx.committing_session()?;
        let (session, _, close) = work.split();
        match self.up_to_commit(session, ctx) {
            Ok(executed) => exactly_once::commit(ctx, session, &executed).map(|()| executed),
            Err(error) => {
                // One that speaks COPY, or that isn't where we left it, is of no further use.
                *close = session.command("ROLLBACK").is_err();
                Err(error)
            }
        }
    }

    /// Each statement by itself: what an earlier one would make isn't there for a later one.
    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let mut session = ctx.session()?;
        let reads = reads::only_reads(&mut session)?;
        let look = |(n, statement): (usize, &ExecuteStatement)| {
            let place = format!("/args/statements/{n}");
            let (sql, params) = (statement.sql.as_str(), statement.params.as_slice());
            let looked = Looked { at: &place, sql, params, settings: "", reads, returns_rows: false, refused };
            let plan = match not_in_a_transaction(sql) {
                Some(error) => Err((format!("{place}/sql"), error)),
                None => look_at(&mut session, ctx, &looked),
            };
            plan.map_err(|(pointer, error)| (pointer, at(n, error)))
        };
        Validation::of(self.statements.iter().enumerate().map(look).collect())
    }
}

/// What the server never runs in a transaction, and so not in an `execute`.
pub(super) fn not_in_a_transaction(sql: &str) -> Option<WorkError> {
    let hint = hints::outside_of_transactions(sql)?;
    let error = JobError::new(ErrorCode::StatementNotAllowed, "this statement can't run in a transaction");
    Some(WorkError::Fail(error.with_hint(hint)))
}

/// What is wrong with a statement as far as its first words show it.
fn refusal(sql: &str) -> Option<&'static str> {
    const CONTROL: &str =
        "expected no transaction control: the statements run in one transaction, which ends with the last of them";
    let words = first_words(sql, 3);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => Some("expected one SQL statement"),
        ["COPY", ..] => Some(
            "expected no COPY, whose data have no way in or out here: the kind import brings the rows of a file in, and a query \
             brings rows out",
        ),
        ["BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE", ..]
        | ["PREPARE" | "SET", "TRANSACTION", ..]
        | ["SET", "LOCAL" | "SESSION", "TRANSACTION" | "CHARACTERISTICS"] => Some(CONTROL),
        _ => None,
    }
}

impl Execute {
    /// Everything but the COMMIT.
    fn up_to_commit(&self, session: &mut Session, ctx: &WorkContext<'_>) -> Result<Executed, WorkError> {
        session.execute_batch("BEGIN")?;
        let begun = transaction(session)?;
        let mut statements = Vec::with_capacity(self.statements.len());
        for (n, statement) in self.statements.iter().enumerate() {
            ctx.check()?;
            let before = Before::look(ctx, session, &statement.sql)?;
            let mut count = statement.run(session).map_err(|error| at(n, error))?;
            // A COMMIT AND CHAIN leaves the session in a transaction: in another one.
            let ended = ["COMMIT", "ROLLBACK"].contains(&count.command.as_str());
            if ended || session.transaction_status() != TransactionStatus::InTransaction {
                return Err(at(n, ended_the_transaction(ctx)));
            }
            let warnings = before.something_was_done(ctx, session).map_err(|error| at(n, error))?;
            count.warned(warnings);
            ctx.count(|statistics| {
                statistics.rows_affected = statistics.rows_affected.saturating_add(count.rows_affected);
                statistics.rows_returned = statistics.rows_returned.saturating_add(count.rows_returned);
            });
            statements.push(count);
            self.report(ctx, n + 1);
        }
        if transaction(session)? != begun {
            return Err(ended_the_transaction(ctx));
        }
        Ok(Executed { statements })
    }

    fn report(&self, ctx: &WorkContext<'_>, done: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        ctx.coarse_progress(Report {
            phase: "running statements".to_owned(),
            done: count(done),
            total: Some(count(self.statements.len())),
            unit: "statements".to_owned(),
            basis: ProgressBasis::Exact,
        });
    }
}

impl StatementCount {
    fn warned(&mut self, warnings: Warnings) {
        self.warning_count = (warnings.total > 0).then_some(warnings.total);
        self.warnings = warnings.shown();
    }
}

impl ExecuteStatement {
    fn run(&self, session: &mut Session) -> Result<StatementCount, WorkError> {
        let placed = |error: PrepareError| error.or_server(|error| refused(error, &self.sql));
        let prepared = Prepared::new(session, &self.sql, &self.params).map_err(placed)?;
        // What an EXPLAIN ANALYZE makes, the server lets a transaction make that only reads.
        let looked = explained(&self.sql).is_some_and(|(analyze, _)| analyze) && reads::only_reads(session)?;
        if looked {
            reads::check_explained(session, &self.sql, &prepared.parameters)?;
        }
        let refused = |error: PqError| placed(PrepareError::of_run(error));
        if !self.params.is_empty() || looked {
            prepared.parse(session)?;
        }
        let mut rows = session.stream(&prepared.values).map_err(refused)?;
        let mut returned = 0_usize;
        while let Some(chunk) = rows.next_chunk().map_err(refused)? {
            returned = returned.saturating_add(chunk.rows());
        }
        Ok(count(rows.command_tag().unwrap_or_default(), returned, !prepared.columns.is_empty()))
    }
}

/// Reads a command tag, such as `INSERT 0 3`, `UPDATE 3` or `CREATE TABLE`. A SELECT without columns of its own is one
/// that fills a table.
fn count(tag: &str, returned: usize, has_columns: bool) -> StatementCount {
    let mut words: Vec<&str> = tag.split(' ').collect();
    let number = words.last().and_then(|word| word.parse::<i64>().ok());
    words.retain(|word| word.parse::<i64>().is_err());
    let command = words.join(" ");
    let reads = match command.as_str() {
        "SELECT" => has_columns,
        command => ["FETCH", "MOVE", "SHOW"].contains(&command),
    };
    StatementCount {
        rows_affected: number.filter(|_| !reads).unwrap_or(0),
        rows_returned: i64::try_from(returned).unwrap_or(i64::MAX),
        command,
        warnings: Vec::new(),
        warning_count: None,
    }
}

pub(super) fn refused(error: PqError, sql: &str) -> WorkError {
    if error.kind == PqErrorKind::Copy {
        let error = JobError::new(ErrorCode::StatementNotAllowed, "COPY is not allowed here");
        return WorkError::Fail(error.with_hint(hints::COPY));
    }
    hints::for_execute(error, sql)
}

/// Whatever it did before that may be committed or not: it is not to be repeated, whoever asks for it.
fn ended_the_transaction(ctx: &WorkContext<'_>) -> WorkError {
    ctx.not_to_be_repeated();
    let error =
        JobError::new(ErrorCode::StatementNotAllowed, "a statement ended the transaction that all of them run in");
    WorkError::Fail(error.with_hint("look at the target: what ran up to there may be committed"))
}

/// Says which statement an error is about.
fn at(n: usize, error: WorkError) -> WorkError {
    let place = |error: JobError| {
        let separator = if error.message.starts_with('/') { "" } else { ": " };
        JobError { message: format!("/statements/{n}{separator}{}", error.message), ..error }.bounded()
    };
    match error {
        WorkError::Retry(error) => WorkError::Retry(place(error)),
        WorkError::Fail(error) => WorkError::Fail(place(error)),
        other => other,
    }
}

/// Which transaction the session is in: `COMMIT AND CHAIN` begins another one, and no status shows it.
fn transaction(session: &mut Session) -> Result<String, WorkError> {
    let rows = session.query(
        "SELECT virtualxid FROM pg_catalog.pg_locks WHERE locktype = 'virtualxid' AND pid = pg_catalog.pg_backend_pid()
            AND virtualxid = virtualtransaction",
        &[],
    )?;
    Ok(rows.get(0, 0).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{count, refusal};

    #[test]
    fn transaction_control_and_copy_are_refused() {
        for sql in [
            "COMMIT",
            "/* x */ commit and chain",
            "-- x\nEND",
            "ROLLBACK TO a",
            "begin",
            "START TRANSACTION",
            "SAVEPOINT a",
            "RELEASE a",
            "Prepare Transaction 'x'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "set local transaction read only",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "; abort",
            "COPY t FROM STDIN",
            "copy (SELECT 1) to stdout",
            "",
            "-- nothing",
        ] {
            assert!(refusal(sql).is_some(), "{sql}");
        }
        for sql in [
            "PREPARE x AS SELECT 1",
            "SET LOCAL work_mem = '1MB'",
            "SET SESSION work_mem = '1MB'",
            "UPDATE t SET a = 1",
            "SELECT commit FROM t",
        ] {
            assert!(refusal(sql).is_none(), "{sql}");
        }
    }

    #[test]
    fn tags_are_counted() {
        let read = |tag, returned| {
            let count = count(tag, returned, returned > 0);
            (count.command, count.rows_affected, count.rows_returned)
        };
        assert_eq!(read("INSERT 0 3", 0), ("INSERT".to_owned(), 3, 0));
        assert_eq!(read("UPDATE 2", 2), ("UPDATE".to_owned(), 2, 2));
        assert_eq!(read("SELECT 7", 7), ("SELECT".to_owned(), 0, 7));
        assert_eq!(read("SELECT 5", 0), ("SELECT".to_owned(), 5, 0));
        assert_eq!(read("CREATE TABLE", 0), ("CREATE TABLE".to_owned(), 0, 0));
    }
}
