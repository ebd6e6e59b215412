//! One batch: the rows between two keys are found by the index, and changed by one statement.
//!
//! Names are looked up and quoted, keys are parameters. The caller's expressions stand in the statement as they are, each
//! between two pairs of parentheses; one that isn't a single expression between one pair is refused before.

use std::ffi::CString;

use crate::kinds::WorkError;
use crate::kinds::backfill::table::{Key, Table};
use crate::kinds::backfill::{Backfill, InsertConflict};
use crate::kinds::prepared::{Prepared, named_types};
use crate::kinds::validate::{StatementPlan, plan_own};
use crate::pq::quote::{identifier, identifiers};
use crate::pq::{PqError, Rows, Session};
use crate::queue::{ErrorCode, JobError};

/// What stands before an expression where it is tried alone.
const TRIED_BEHIND: &str = "SELECT (\n";

/// The statements of a backfill.
pub(super) struct Statements {
    table: String,
    /// The columns of the key, quoted.
    key: Vec<String>,
    /// The schema of the operators by which they compare, where it has to be named.
    operators: Option<String>,
    /// The statement up to its WHERE.
    what: String,
    /// The caller's condition.
    condition: Option<String>,
    /// What follows the WHERE.
    tail: &'static str,
    /// The types that the caller's parameters name, and their values.
    types: Vec<u32>,
    values: Vec<Option<CString>>,
}

/// What a batch did.
#[derive(Debug)]
pub(super) struct Batch {
    /// The key of its last row.
    pub upto: Vec<String>,
    /// Rows between the two keys.
    pub scanned: u64,
    /// Rows that were changed.
    pub affected: u64,
}

/// An expression between two pairs of parentheses. On lines of its own, so that a comment at its end stays in there.
fn enclosed(expression: &str) -> String {
    format!("((\n{expression}\n))")
}

impl Statements {
    /// Of `work` on `table` by `key`, tried on the server.
    pub fn new(session: &mut Session, work: &Backfill, table: &Table, key: &Key) -> Result<Statements, WorkError> {
        try_expressions(session, work, table)?;
        let mut tail = "";
        let what = if let Some(set) = &work.set {
            let assigned = set.iter().map(|(name, value)| format!("{} = {}", identifier(name), enclosed(value)));
            format!("UPDATE {} SET {}", table.name, assigned.collect::<Vec<_>>().join(", "))
        } else if let Some(insert) = &work.insert_select {
            let into = Table::find(session, &insert.into)?;
            into.check(insert.columns.iter(), "insert_select", true)?;
            if insert.on_conflict == InsertConflict::Skip {
                tail = " ON CONFLICT DO NOTHING";
            }
            let overriding = if into.has_identity(&insert.columns) { "OVERRIDING SYSTEM VALUE " } else { "" };
            let select = insert.select.iter().map(|value| enclosed(value)).collect::<Vec<_>>().join(", ");
            format!(
                "INSERT INTO {} ({}) {overriding}SELECT {select} FROM {}",
                into.name,
                identifiers(&insert.columns),
                table.name
            )
        } else {
            format!("DELETE FROM {}", table.name)
        };
        let condition = work.condition.as_deref().map(enclosed);
        let mut statements = Statements {
            table: table.name.clone(),
            key: key.names.iter().map(|name| identifier(name)).collect(),
            operators: key.operators.clone(),
            what,
            condition,
            tail,
            types: Vec::new(),
            values: Vec::new(),
        };
        let tried = statements.change("false");
        let prepared =
            Prepared::new(session, &tried, &work.params).map_err(|error| error.or_server(without_position))?;
        (statements.types, statements.values) = (prepared.types, prepared.values);
        Ok(statements)
    }

    /// The statement for the rows of a condition.
    fn change(&self, rows: &str) -> String {
        let condition = self.condition.as_ref().map(|condition| format!(" AND {condition}")).unwrap_or_default();
        format!("{} WHERE {rows}{condition}{}", self.what, self.tail)
    }

    /// The key compared with parameters from `$first` on.
    fn compared(&self, operator: &str, first: usize) -> String {
        let params = (0..self.key.len()).map(|n| format!("${}", first + n)).collect::<Vec<_>>().join(", ");
        let operator = match &self.operators {
            Some(schema) => format!("OPERATOR({schema}.{operator})"),
            None => operator.to_owned(),
        };
        format!("({}) {operator} ({params})", self.key.join(", "))
    }

    /// The rows behind a key, if there is one, up to another one and with it; parameters from `$first` on.
    fn between(&self, after: bool, first: usize) -> String {
        if after {
            format!("{} AND {}", self.compared(">", first), self.compared("<=", first + self.key.len()))
        } else {
            self.compared("<=", first)
        }
    }

    fn ordered(&self, direction: &str) -> String {
        self.key.iter().map(|column| format!("{column} {direction}")).collect::<Vec<_>>().join(", ")
    }

    /// The largest key; `None` when the table is empty.
    pub fn last_key(&self, session: &mut Session) -> Result<Option<Vec<String>>, PqError> {
        let columns = self.key.join(", ");
        let sql = format!("SELECT {columns} FROM {} ORDER BY {} LIMIT 1", self.table, self.ordered("DESC"));
        let rows = session.query(&sql, &[])?;
        (!rows.is_empty()).then(|| self.values_of(&rows, 0)).transpose()
    }

    /// A key as the server wrote it. One that is NULL all the same, or no text at all, has no place to go on from.
    fn values_of(&self, rows: &Rows, from: usize) -> Result<Vec<String>, PqError> {
        let value = |column: usize| {
            rows.get(0, column).map(str::to_owned).ok_or_else(|| PqError::unreadable("a key is NULL, or isn't UTF-8"))
        };
        (from..from + self.key.len()).map(value).collect()
    }

    /// Changes the first `rows` rows behind `after`, within the transaction that the session is in. Rows with equal keys come
    /// together. `None` when there is none up to `last`.
    pub fn run(
        &self,
        session: &mut Session,
        after: Option<&[String]>,
        last: &[String],
        rows: u64,
    ) -> Result<Option<Batch>, PqError> {
        let Some((upto, scanned)) = self.bound(session, after, last, rows)? else { return Ok(None) };
        let sql = self.change(&self.between(after.is_some(), self.values.len() + 1));
        session.prepare(&sql, &self.types)?;
        let mut values = self.values.clone();
        for key in after.unwrap_or_default().iter().chain(&upto) {
            // It came from the server as a text, in which there is no NUL.
            values.push(Some(CString::new(key.as_str()).unwrap_or_default()));
        }
        let mut changed = session.stream(&values)?;
        while changed.next_chunk()?.is_some() {}
        let affected = changed.command_tag().and_then(|tag| tag.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
        Ok(Some(Batch { upto, scanned, affected }))
    }

    /// How the server would go about the first batch, within the transaction that the session is in. `None` when there is
    /// no row.
    pub fn plan(&self, session: &mut Session, rows: u64) -> Result<Option<StatementPlan>, PqError> {
        let Some(last) = self.last_key(session)? else { return Ok(None) };
        let Some((upto, _)) = self.bound(session, None, &last, rows)? else { return Ok(None) };
        let sql = self.change(&self.between(false, self.values.len() + 1));
        let mut values = self.values.clone();
        values.extend(upto.into_iter().map(|key| Some(CString::new(key).unwrap_or_default())));
        plan_own(session, &sql, &self.types, &values).map(Some)
    }

    /// Has the server plan the statement for no row: whether the role may run it is looked at then.
    pub fn plan_without_rows(&self, session: &mut Session) -> Result<(), PqError> {
        plan_own(session, &self.change("false"), &self.types, &self.values).map(drop)
    }

    /// The key of the last one of the next rows, and how many there are up to it.
    fn bound(
        &self,
        session: &mut Session,
        after: Option<&[String]>,
        last: &[String],
        rows: u64,
    ) -> Result<Option<(Vec<String>, u64)>, PqError> {
        let columns = self.key.join(", ");
        let sql = format!(
            "WITH batch AS MATERIALIZED (
                SELECT {columns} FROM {} WHERE {} ORDER BY {} FETCH FIRST {rows} ROWS WITH TIES)
             SELECT (SELECT count(*) FROM batch), {columns} FROM batch ORDER BY {} LIMIT 1",
            self.table,
            self.between(after.is_some(), 1),
            self.ordered("ASC"),
            self.ordered("DESC"),
        );
        let params: Vec<Option<&str>> =
            after.unwrap_or_default().iter().chain(last).map(|key| Some(key.as_str())).collect();
        let found = session.query(&sql, &params)?;
        let count = found.get(0, 0).and_then(|count| count.parse().ok());
        count.map(|count| Ok((self.values_of(&found, 1)?, count))).transpose()
    }
}

/// Each of the caller's expressions, alone between parentheses, is one expression: then it is one in the statement as well,
/// where another pair stands around it, and reaches no word of ours.
fn try_expressions(session: &mut Session, work: &Backfill, table: &Table) -> Result<(), WorkError> {
    let mut expressions: Vec<(String, &str)> = Vec::new();
    if let Some(set) = &work.set {
        expressions.extend(set.iter().map(|(name, value)| (format!("/set/{name}"), value.as_str())));
    }
    if let Some(insert) = &work.insert_select {
        let select = insert.select.iter().enumerate();
        expressions.extend(select.map(|(n, value)| (format!("/insert_select/select/{n}"), value.as_str())));
    }
    expressions.extend(work.condition.as_deref().map(|condition| ("/where".to_owned(), condition)));
    let types = named_types(session, &work.params).map_err(|error| error.or_server(without_position))?;
    let from = format!(" FROM {} WHERE false", table.name);
    let params = Params { count: work.params.len(), types: &types };
    for (pointer, expression) in expressions {
        let types = try_expression(session, &pointer, expression, &from, params)?;
        if pointer.starts_with("/insert_select") {
            of_one_row(session, &pointer, expression, &table.name, &types)?;
        }
    }
    Ok(())
}

/// An expression of one row: in a WHERE the server takes no aggregate, no window and no set. In a SELECT it does, and a batch would
/// insert something that depends on its size. `types` are those that the server gave all parameters in the SELECT.
fn of_one_row(
    session: &mut Session,
    pointer: &str,
    expression: &str,
    table: &str,
    types: &[u32],
) -> Result<(), WorkError> {
    let sql = format!("SELECT 1 FROM {table} WHERE {} IS NULL", enclosed(expression));
    match session.prepare(&sql, types) {
        Ok(_) => Ok(()),
        Err(error) if ["42803", "42P20", "0A000"].contains(&error.sqlstate.as_deref().unwrap_or_default()) => {
            let message = format!("{pointer}: expected an expression of one row: {}", error.message);
            Err(WorkError::Fail(JobError::new(ErrorCode::ExpressionNotAllowed, message)))
        }
        Err(error) => Err(at(pointer, without_position(error))),
    }
}

/// The parameters that an expression may name, and the types that they name themselves.
#[derive(Clone, Copy, Default)]
pub(super) struct Params<'t> {
    count: usize,
    types: &'t [u32],
}

/// As `try_expressions`, for one of them. Returns the types of the parameters.
pub(super) fn try_expression(
    session: &mut Session,
    pointer: &str,
    expression: &str,
    from: &str,
    params: Params<'_>,
) -> Result<Vec<u32>, WorkError> {
    // Every parameter is named: the server wants to know the type of each up to the last.
    let all: String = (1..=params.count).map(|n| format!(", ${n}")).collect();
    let described =
        session.prepare(&format!("{TRIED_BEHIND}{expression}\n){all}{from}"), params.types).map_err(|error| {
            let behind = u32::try_from(TRIED_BEHIND.len()).unwrap_or(0);
            let position =
                error.position.and_then(|position| position.checked_sub(behind)).filter(|position| *position > 0);
            at(pointer, PqError { position, ..error }.into())
        })?;
    if described.columns.len() != 1 + params.count {
        let error = JobError::new(ErrorCode::ExpressionNotAllowed, format!("{pointer}: expected one SQL expression"));
        return Err(WorkError::Fail(error));
    }
    Ok(described.params)
}

/// Says which argument an error is about.
fn at(pointer: &str, error: WorkError) -> WorkError {
    let place = |error: JobError| JobError { message: format!("{pointer}: {}", error.message), ..error };
    match error {
        WorkError::Retry(error) => WorkError::Retry(place(error)),
        WorkError::Fail(error) => WorkError::Fail(place(error)),
        other => other,
    }
}

/// A position in a statement that is ours says nothing to the caller.
pub(super) fn without_position(error: PqError) -> WorkError {
    PqError { position: None, ..error }.into()
}
