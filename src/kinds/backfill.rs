//! `backfill`: rows of a table are changed, deleted, or copied elsewhere, in batches by key. Each batch is one
//! transaction that is committed exactly once together with the cursor at which the work goes on.
//!
//! It goes from the first key up to the one that was the last when it began, so it ends however much is inserted.
//! Between batches it holds no transaction: that is where guards are looked at, where it is paused, and where others
//! get their turn.
//!
//! | file | what it has |
//! | --- | --- |
//! | `table` | the catalog, the key, the lock of the one writer |
//! | `batch` | the statements, and what one batch does |
//! | `tries` | a batch that is tried until it comes to something |
//! | `size` | how many rows a batch takes, and when it may begin |
//! | `guards` | what must be so before it begins |
//! | `misplaced` | an error with the argument that it is about |

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::kinds::planning;
use crate::kinds::prepare_error::PrepareError;
use crate::kinds::{params, reads};
use crate::pq::{PqError, Session};
use crate::queue::model::ProgressBasis;
use crate::queue::model::pointer::step;
use crate::queue::{ErrorCode, JobError};
use crate::work::context::WorkContext;
use crate::work::progress::Report;
use crate::work::validation::Validation;
use crate::work::{ArgError, Work, WorkError, exactly_once};

mod batch;
mod guards;
mod misplaced;
mod size;
mod table;
mod tries;

pub use guards::Guards;
pub use size::MAX_BATCH_ROWS;

pub(in crate::kinds) use batch::{Params, enclosed, try_expression};

use batch::{Batch, Statements, without_position};
use guards::Watch;
pub(in crate::kinds) use misplaced::Misplaced;
use size::{BatchSize, Pace};
use table::{Key, Table};
use tries::Attempted;

/// `batch_rows` when the caller names none.
pub const DEFAULT_BATCH_ROWS: u64 = 1_000;
/// `target_batch_ms` when the caller names none.
pub const DEFAULT_TARGET_BATCH_MS: u64 = 500;
/// The least and the largest `target_batch_ms`.
pub const TARGET_BATCH_MS: (u64, u64) = (10, 60_000);
/// The largest `max_rate`.
pub const MAX_MAX_RATE: u64 = 1_000_000_000;
/// The most columns of an index in Postgres.
const MAX_KEY_COLUMNS: usize = 32;
/// The most columns of a table in Postgres.
const MAX_COLUMNS: usize = 1_600;
/// A batch that takes so many times as long as it should is stopped and split.
const TIMEOUT_FACTOR: u32 = 10;
/// No batch is stopped before this.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);

/// The arguments of a `backfill`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Backfill {
    /// The table, with its schema or as the target's `search_path` finds it; quoted where SQL would have it. Partitioned or not; no view.
    pub table: String,
    /// The columns by which it is gone through: the first columns of a btree index without a condition, none of them nullable, all
    /// ascending or all descending. It needn't be unique. Defaults to the primary key.
    pub key: Option<Vec<String>>,
    /// Columns that get new values: an SQL expression for each. Neither columns of the key nor generated ones.
    pub set: Option<BTreeMap<String, String>>,
    /// The rows are deleted.
    #[serde(default)]
    pub delete: bool,
    /// Each row becomes one of another table.
    pub insert_select: Option<InsertSelect>,
    /// An SQL expression that is true for the rows that are meant. Defaults to all.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Values for `$1`, `$2` and so on in the expressions; each keeps the literal that you wrote.
    #[serde(default)]
    #[schema(value_type = Vec<serde_json::Value>)]
    pub params: Vec<Box<RawValue>>,
    /// Rows of the first batch: 1 to 100,000. Defaults to 1,000.
    pub batch_rows: Option<u64>,
    /// How long the statements of a batch should take, in milliseconds: 10 to 60,000. Defaults to 500.
    pub target_batch_ms: Option<u64>,
    /// The most rows that are looked at in a second; no batch has more. Defaults to no limit.
    pub max_rate: Option<u64>,
    /// What must be so before a batch begins; nothing by default.
    #[serde(default)]
    pub guards: Guards,
    /// It runs although another backfill is at work on the table; false by default.
    #[serde(default)]
    pub allow_other_writers: bool,
}

/// Where rows go, and what they become.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InsertSelect {
    /// The table that gets them.
    pub into: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// An SQL expression for each of the columns.
    pub select: Vec<String>,
    /// What becomes of rows whose key is there already: an error (the default), or they are left out.
    #[serde(default)]
    pub on_conflict: InsertConflict,
}

/// What becomes of rows whose key is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InsertConflict {
    /// They are an error.
    #[default]
    Error,
    /// They are left out.
    Skip,
}

/// What a `backfill` did, all attempts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfilled {
    /// Transactions that were committed.
    pub batches: u64,
    /// Rows of the table that were looked at.
    pub rows_scanned: u64,
    /// Rows that were changed, deleted or inserted.
    pub rows_affected: u64,
    /// Rows that the next batch would have taken.
    pub final_batch_rows: u64,
}

/// Where it goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    /// The table's oid: one of the same name that was made since is another table.
    table: String,
    /// Which columns the key is, and how they compare.
    key: Vec<String>,
    /// The key behind which there is more to do. `None` before the first batch.
    after: Option<Vec<String>>,
    /// The last key when it began.
    last: Vec<String>,
    /// All was done.
    complete: bool,
    done: Backfilled,
}

fn is_text(sql: &str) -> bool {
    !sql.trim().is_empty() && !sql.contains('\0')
}

impl Work for Backfill {
    const KIND: &'static str = "backfill";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    const RESUMABLE: bool = true;
    const VALIDATES: bool = true;
    type Output = Backfilled;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        const EXPRESSION: &str = "expected an SQL expression";
        let mut errors = Vec::new();
        let mut wrong = |pointer: &str, detail: &str| errors.push(ArgError::new(pointer, detail));
        let number = |value: Option<u64>, least: u64, most: u64| value.is_none_or(|n| (least..=most).contains(&n));
        if !is_text(&self.table) {
            wrong("/table", "expected the name of a table");
        }
        let ways =
            usize::from(self.set.is_some()) + usize::from(self.delete) + usize::from(self.insert_select.is_some());
        if ways != 1 {
            wrong("", "expected one of set, delete: true and insert_select");
        }
        let key = self.key.as_deref().unwrap_or_default();
        if self.key.is_some() && (key.is_empty() || key.len() > MAX_KEY_COLUMNS || key.iter().any(String::is_empty)) {
            wrong("/key", "expected 1 to 32 names of columns");
        } else if let Some(n) = repeated(key) {
            wrong(&format!("/key/{n}"), "expected each column once");
        }
        for (name, value) in self.set.iter().flatten() {
            let pointer = format!("/set{}", step(name));
            if !is_text(value) {
                wrong(&pointer, EXPRESSION);
            }
            if key.contains(name) {
                wrong(&pointer, "expected no column of the key: its rows would move while the table is gone through");
            }
        }
        if self.set.as_ref().is_some_and(|set| set.is_empty() || set.len() > MAX_COLUMNS) {
            wrong("/set", "expected 1 to 1600 columns, each with an SQL expression");
        }
        if let Some(insert) = &self.insert_select {
            if !is_text(&insert.into) {
                wrong("/insert_select/into", "expected the name of a table");
            }
            if insert.columns.is_empty() || insert.columns.len() > MAX_COLUMNS {
                wrong("/insert_select/columns", "expected 1 to 1600 names of columns");
            } else if let Some(n) = repeated(&insert.columns) {
                wrong(&format!("/insert_select/columns/{n}"), "expected each column once");
            }
            if insert.select.len() != insert.columns.len() {
                wrong("/insert_select/select", "expected an SQL expression for each of columns");
            }
            for (n, _) in insert.select.iter().enumerate().filter(|(_, value)| !is_text(value)) {
                wrong(&format!("/insert_select/select/{n}"), EXPRESSION);
            }
        }
        if self.condition.as_deref().is_some_and(|condition| !is_text(condition)) {
            wrong("/where", "expected an SQL expression that is true for the rows that are meant");
        }
        if !number(self.batch_rows, 1, MAX_BATCH_ROWS) {
            wrong("/batch_rows", &format!("expected 1 to {MAX_BATCH_ROWS}"));
        }
        if !number(self.target_batch_ms, TARGET_BATCH_MS.0, TARGET_BATCH_MS.1) {
            wrong("/target_batch_ms", &format!("expected {} to {}", TARGET_BATCH_MS.0, TARGET_BATCH_MS.1));
        }
        if !number(self.max_rate, 1, MAX_MAX_RATE) {
            wrong("/max_rate", &format!("expected 1 to {MAX_MAX_RATE} rows in a second"));
        }
        errors.extend(self.guards.check());
        errors.extend(params::check("/params", &self.params));
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Backfilled, WorkError> {
        let before: Option<Cursor> = ctx.checkpoint()?;
        let mut work = ctx.committing_session()?;
        let (session, _, close) = work.split();
        let done = self.go_through(ctx, session, before).map_err(WorkError::from);
        if done.is_err() && !session.is_idle() {
            *close = session.command("ROLLBACK").is_err();
        }
        done
    }

    fn validate(&self, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let mut session = ctx.session()?;
        let mut validation = Validation { valid: true, ..Validation::default() };
        let left = ctx.statement_ms(ctx.remaining().min(planning::TIMEOUT));
        if let Err(error) = reads::must_write(&mut session) {
            validation.stands_in_the_way("/target".to_owned(), error)?;
            return Ok(validation);
        }
        // Guards are looked at outside of any transaction, as the work does.
        session.execute_batch(&format!("SET default_transaction_read_only = on; SET statement_timeout = {left}"))?;
        if let Err(error) = self.look(ctx, &mut session, &mut validation) {
            let (pointer, error) = error.apart();
            validation.stands_in_the_way(format!("/args{pointer}"), error)?;
        }
        Ok(validation)
    }
}

/// The first one that was there before.
fn repeated(names: &[String]) -> Option<usize> {
    (1..names.len()).find(|n| names.iter().take(*n).any(|name| Some(name) == names.get(*n)))
}

impl Backfill {
    fn go_through(
        &self,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        before: Option<Cursor>,
    ) -> Result<Backfilled, Misplaced> {
        let table = Table::find(session, "/table", &self.table)?;
        if !self.allow_other_writers && !table.lock(session)? {
            return Err(table_busy(ctx, &table).into());
        }
        let key = table.key(session, self.key.as_deref())?;
        self.check_columns(&table, &key.names)?;
        let mut watch = Watch::new(session, &self.guards, &table)?;
        let progress = Progress { ctx, phase: self.phase(), estimate: table.estimate };
        // Even to have the statement looked at takes a lock of the table for a moment.
        let scanned = before.as_ref().map_or(0, |cursor| cursor.done.rows_scanned);
        watch.pass(ctx, session, |reason| progress.tell(scanned, reason))?;
        let statements = Statements::new(session, self, &table, &key)?;

        let Some(mut cursor) = begin(session, before, &table, &key, &statements)? else {
            progress.end(0);
            return Ok(Backfilled { final_batch_rows: self.first_rows(), ..Backfilled::default() });
        };
        let begin_with = if cursor.done.batches > 0 { cursor.done.final_batch_rows } else { self.first_rows() };
        let mut size = BatchSize::new(begin_with, self.max_rate.unwrap_or(MAX_BATCH_ROWS), self.target());
        let mut pace = Pace::new(self.max_rate, Instant::now());
        progress.tell(cursor.done.rows_scanned, self.phase());
        while !cursor.complete {
            let scanned = cursor.done.rows_scanned;
            watch.pass(ctx, session, |reason| progress.tell(scanned, reason))?;
            ctx.wait(pace.pause(Instant::now()))?;
            let began = Instant::now();
            let asked = Attempted { statements: &statements, timeout: self.timeout(), progress: &progress };
            let Some(batch) = asked.batch(ctx, session, &cursor, &mut size)? else {
                // Whatever was left has been deleted by others.
                cursor.complete = true;
                break;
            };
            pace.took(batch.scanned, began);
            cursor.advance(&batch, size.rows());
            ctx.count(|statistics| {
                let rows = i64::try_from(batch.affected).unwrap_or(i64::MAX);
                statistics.rows_affected = statistics.rows_affected.saturating_add(rows);
            });
            exactly_once::commit_batch(ctx, session, &cursor)?;
            progress.tell(cursor.done.rows_scanned, self.phase());
        }
        progress.end(cursor.done.rows_scanned);
        Ok(cursor.done)
    }

    /// What it would meet, and how the server would go about the first batch.
    fn look(&self, ctx: &WorkContext<'_>, session: &mut Session, validation: &mut Validation) -> Result<(), Misplaced> {
        let (table, key) = self.find(session)?;
        let mut watch = Watch::new(session, &self.guards, &table)?;
        watch.look(ctx, session)?;
        let statements = Statements::new(session, self, &table, &key)?;
        let plan = statements.plan(session, self.first_rows()).map_err(|error| self.of_run(error))?;
        let rows = if plan.is_some() { table.estimate } else { Some(0) };
        let batch_rows = i64::try_from(self.first_rows()).unwrap_or(i64::MAX);
        validation.estimated_batches = rows.map(|rows| rows.saturating_add(batch_rows - 1) / batch_rows);
        validation.statements.extend(plan);
        Ok(())
    }

    /// The table and its key.
    fn find(&self, session: &mut Session) -> Result<(Table, Key), Misplaced> {
        let table = Table::find(session, "/table", &self.table).map_err(|error| Misplaced::at("/table", error))?;
        let key = table.key(session, self.key.as_deref()).map_err(|error| Misplaced::at("/key", error))?;
        self.check_columns(&table, &key.names)?;
        Ok((table, key))
    }

    /// About one of the values, or the statement as a whole.
    fn of_run(&self, error: PqError) -> Misplaced {
        let error = PrepareError::of_run(error);
        let place = error.place();
        let error = error.or_server(without_position);
        match place {
            Some(place) => Misplaced::at(place, error),
            None => self.whole(error),
        }
    }

    /// What is wrong with the statement as a whole is about what it does.
    fn whole(&self, error: WorkError) -> Misplaced {
        let what = match (&self.set, &self.insert_select) {
            (Some(_), _) => "/set",
            (None, Some(_)) => "/insert_select",
            (None, None) => "/delete",
        };
        Misplaced::at(what, error)
    }

    /// What stands in its way whatever the values are: the catalog, the expressions, the role's rights.
    pub(super) fn look_without_values(&self, session: &mut Session) -> Result<(), (String, WorkError)> {
        let look = |session: &mut Session| {
            let (table, key) = self.find(session)?;
            Watch::new(session, &self.guards, &table)?;
            let statements = Statements::new(session, self, &table, &key)?;
            statements.plan_without_rows(session).map_err(|error| self.whole(without_position(error)))
        };
        look(session).map_err(Misplaced::apart)
    }

    fn check_columns(&self, table: &Table, key: &[String]) -> Result<(), Misplaced> {
        for name in self.set.iter().flat_map(BTreeMap::keys) {
            let at = |error| Misplaced::at(format!("/set{}", step(name)), error);
            table.check(name, "set", false).map_err(at)?;
            if key.contains(name) {
                let message = format!("set changes {name}, by which the table is gone through");
                let error = JobError::new(ErrorCode::KeyColumn, message);
                return Err(at(WorkError::Fail(error.with_hint("name the columns of another index in key"))));
            }
        }
        Ok(())
    }

    fn first_rows(&self) -> u64 {
        self.batch_rows.unwrap_or(DEFAULT_BATCH_ROWS).min(self.max_rate.unwrap_or(MAX_BATCH_ROWS))
    }

    fn target(&self) -> Duration {
        Duration::from_millis(self.target_batch_ms.unwrap_or(DEFAULT_TARGET_BATCH_MS))
    }

    fn timeout(&self) -> Duration {
        self.target().saturating_mul(TIMEOUT_FACTOR).max(LEAST_TIMEOUT)
    }

    fn phase(&self) -> &'static str {
        match (&self.set, &self.insert_select) {
            (Some(_), _) => "updating rows",
            (None, Some(_)) => "inserting rows",
            (None, None) => "deleting rows",
        }
    }
}

/// Nothing has begun: it is put off, uncharged.
fn table_busy(ctx: &WorkContext<'_>, table: &Table) -> WorkError {
    ctx.nothing_took_effect();
    let message = format!("another job is at work on {}: this one waits until that one is done", table.name);
    let error = JobError::new(ErrorCode::TableBusy, message).retryable();
    WorkError::Unavailable(error.with_hint("set allow_other_writers to run both at a time"))
}

/// From where an earlier attempt was, or from the first row. `None` when there is no row.
fn begin(
    session: &mut Session,
    before: Option<Cursor>,
    table: &Table,
    key: &Key,
    statements: &Statements,
) -> Result<Option<Cursor>, WorkError> {
    let changed = |message: String| {
        let hint = "look at what was done, and submit what is left as a new job";
        Err(WorkError::Fail(JobError::new(ErrorCode::TableChanged, message).with_hint(hint)))
    };
    match before {
        Some(cursor) if cursor.table == table.oid && cursor.key == key.shape => Ok(Some(cursor)),
        Some(cursor) if cursor.table == table.oid => {
            let key = key.names.join(", ");
            changed(format!("the key of {} is {key} now, and an earlier attempt went by another one", table.name))
        }
        Some(_) => changed(format!("{} is another table than the one that an earlier attempt worked on", table.name)),
        None => {
            let last = statements.last_key(session).map_err(without_position)?;
            let table = table.oid.clone();
            let key = key.shape.clone();
            Ok(last.map(|last| Cursor { table, key, after: None, last, complete: false, done: Backfilled::default() }))
        }
    }
}

impl Cursor {
    fn advance(&mut self, batch: &Batch, next_rows: u64) {
        self.complete = batch.upto == self.last;
        self.after = Some(batch.upto.clone());
        let done = &mut self.done;
        done.batches = done.batches.saturating_add(1);
        done.rows_scanned = done.rows_scanned.saturating_add(batch.scanned);
        done.rows_affected = done.rows_affected.saturating_add(batch.affected);
        done.final_batch_rows = next_rows;
    }
}

/// Says how far it is: rows in the order of the key.
struct Progress<'c, 'a> {
    ctx: &'c WorkContext<'a>,
    phase: &'static str,
    estimate: Option<i64>,
}

impl Progress<'_, '_> {
    /// The planner's count may be old: once more is done, nothing is known of the whole.
    fn tell(&self, done: u64, phase: &str) {
        let done = i64::try_from(done).unwrap_or(i64::MAX);
        self.report(phase, done, self.estimate.filter(|estimate| *estimate >= done), ProgressBasis::Estimated);
    }

    fn end(&self, done: u64) {
        let done = i64::try_from(done).unwrap_or(i64::MAX);
        self.report(self.phase, done, Some(done), ProgressBasis::Exact);
    }

    fn report(&self, phase: &str, done: i64, total: Option<i64>, basis: ProgressBasis) {
        let basis = if total.is_some() { basis } else { ProgressBasis::None };
        self.ctx.progress(Report { phase: phase.to_owned(), done, total, unit: "rows".to_owned(), basis });
    }
}
