//! One batch: the rows between two keys are found by the index, and changed by one statement.
//!
//! Names are looked up and quoted, keys are parameters. The caller's expressions stand in the statement as they are,
//! each between two pairs of parentheses; one that isn't a single expression between one pair is refused before.

use std::ffi::CString;

use crate::kinds::backfill::table::{Form, Key, Table};
use crate::kinds::backfill::{Backfill, InsertConflict, Misplaced};
use crate::kinds::planning::plan_own;
use crate::kinds::prepare_error::PrepareError;
use crate::kinds::prepared::{Prepared, named_types};
use crate::pq::quote::{identifier, identifiers};
use crate::pq::{PqError, Rows, Session, TransactionStatus};
use crate::queue::model::pointer::step;
use crate::queue::{ErrorCode, JobError};
use crate::target::prologue::ROW_FORM_SQL;
use crate::work::WorkError;
use crate::work::validation::StatementPlan;

/// What stands before an expression where it is tried alone.
const TRIED_BEHIND: &str = "SELECT (\n";

/// Where a key is read, whose text has to be the same key in every attempt.
const LOOK: &str = "slowlane_look";

/// The statements of a backfill.
pub(super) struct Statements {
    table: String,
    /// The columns of the key, quoted.
    key: Vec<String>,
    /// The same, as what they are written.
    key_texts: Vec<String>,
    /// Behind a parameter, the type as which it is read.
    key_casts: Vec<String>,
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
pub(in crate::kinds) fn enclosed(expression: &str) -> String {
    format!("((\n{expression}\n))")
}

/// The `n`th column of a key, to be read as a text. Its name is no column's: rows are ordered by the column itself.
fn written(n: usize, name: &str, form: &Form) -> String {
    let through = match (form.as_oid, form.money) {
        (true, _) => "oid",
        (false, true) => "numeric",
        (false, false) => return identifier(name),
    };
    format!("{}::pg_catalog.{through} AS slowlane_key_{n}", identifier(name))
}

fn cast(form: &Form) -> String {
    if form.money {
        return "::pg_catalog.numeric::pg_catalog.money".to_owned();
    }
    form.read_as.as_ref().map(|name| format!("::{name}")).unwrap_or_default()
}

impl Statements {
    /// Of `work` on `table` by `key`, tried on the server.
    pub fn new(session: &mut Session, work: &Backfill, table: &Table, key: &Key) -> Result<Statements, Misplaced> {
        try_expressions(session, work, table)?;
        let mut tail = "";
        let what = if let Some(set) = &work.set {
            let assigned = set.iter().map(|(name, value)| format!("{} = {}", identifier(name), enclosed(value)));
            format!("UPDATE {} SET {}", table.name, assigned.collect::<Vec<_>>().join(", "))
        } else if let Some(insert) = &work.insert_select {
            let into = Table::find(session, "/insert_select/into", &insert.into);
            let into = into.map_err(|error| Misplaced::at("/insert_select/into", error))?;
            for (n, name) in insert.columns.iter().enumerate() {
                let at = |error| Misplaced::at(format!("/insert_select/columns/{n}"), error);
                into.check(name, "insert_select", true).map_err(at)?;
            }
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
            key_texts: key
                .names
                .iter()
                .zip(&key.forms)
                .enumerate()
                .map(|(n, (name, form))| written(n, name, form))
                .collect(),
            key_casts: key.forms.iter().map(cast).collect(),
            operators: key.operators.clone(),
            what,
            condition,
            tail,
            types: Vec::new(),
            values: Vec::new(),
        };
        let tried = statements.change("false");
        let prepared = Prepared::new(session, &tried, &work.params).map_err(|error| misplaced(work, &tried, error))?;
        (statements.types, statements.values) = (prepared.types(), prepared.values);
        Ok(statements)
    }

    /// The statement for the rows of a condition.
    fn change(&self, rows: &str) -> String {
        let condition = self.condition.as_ref().map(|condition| format!(" AND {condition}")).unwrap_or_default();
        format!("{} WHERE {rows}{condition}{}", self.what, self.tail)
    }

    /// The key compared with parameters from `$first` on.
    fn compared(&self, operator: &str, first: usize) -> String {
        let params = self.key_casts.iter().enumerate().map(|(n, cast)| format!("${}{cast}", first + n));
        let params = params.collect::<Vec<_>>().join(", ");
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

    /// The columns of the key, as their texts are exact.
    fn ordered(&self, direction: &str) -> String {
        self.key.iter().map(|column| format!("{column} {direction}")).collect::<Vec<_>>().join(", ")
    }

    /// The largest key; `None` when the table is empty.
    pub fn last_key(&self, session: &mut Session) -> Result<Option<Vec<String>>, PqError> {
        let columns = self.key_texts.join(", ");
        let sql = format!("SELECT {columns} FROM {} ORDER BY {} LIMIT 1", self.table, self.ordered("DESC"));
        let rows = exactly(session, |session| session.query(&sql, &[]))?;
        (!rows.is_empty()).then(|| self.values_of(&rows, 0)).transpose()
    }

    /// A key as the server wrote it. One that is NULL all the same, or no text at all, has no place to go on from.
    fn values_of(&self, rows: &Rows, from: usize) -> Result<Vec<String>, PqError> {
        let value = |column: usize| {
            rows.get(0, column).map(str::to_owned).ok_or_else(|| PqError::unreadable("a key is NULL, or isn't UTF-8"))
        };
        (from..from + self.key.len()).map(value).collect()
    }

    /// Changes the first `rows` rows behind `after`, within the transaction that the session is in. Rows with equal
    /// keys come together. `None` when there is none up to `last`.
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

    /// How the server would go about the first batch, within the transaction that the session is in. `None` when there
    /// is no row.
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
             SELECT (SELECT pg_catalog.count(*) FROM batch), {} FROM batch ORDER BY {} LIMIT 1",
            self.table,
            self.between(after.is_some(), 1),
            self.ordered("ASC"),
            self.key_texts.join(", "),
            self.ordered("DESC"),
        );
        let params: Vec<Option<&str>> =
            after.unwrap_or_default().iter().chain(last).map(|key| Some(key.as_str())).collect();
        let found = exactly(session, |session| session.query(&sql, &params))?;
        let count = found.get(0, 0).and_then(|count| count.parse().ok());
        count.map(|count| Ok((self.values_of(&found, 1)?, count))).transpose()
    }
}

/// Has a key written in a form that every session reads as the same key, whatever its login has set; and the next ones
/// compared with it. Only for this: what the caller's expressions make of a value is the login's.
fn exactly<T>(session: &mut Session, look: impl FnOnce(&mut Session) -> Result<T, PqError>) -> Result<T, PqError> {
    let alone = session.transaction_status() == TransactionStatus::Idle;
    let begin = if alone { "BEGIN READ ONLY".to_owned() } else { format!("SAVEPOINT {LOOK}") };
    let end = match alone {
        true => "ROLLBACK".to_owned(),
        false => format!("ROLLBACK TO SAVEPOINT {LOOK}; RELEASE SAVEPOINT {LOOK}"),
    };
    session.execute_batch(&format!("{begin}; {ROW_FORM_SQL}; SET LOCAL TimeZone = 'UTC'"))?;
    let found = look(session);
    if found.is_ok() || alone {
        session.execute_batch(&end)?;
    }
    found
}

/// Each of the caller's expressions, alone between parentheses, is one expression: then it is one in the statement as
/// well, where another pair stands around it, and reaches no word of ours.
fn try_expressions(session: &mut Session, work: &Backfill, table: &Table) -> Result<(), Misplaced> {
    let types = named_types(session, &work.params).map_err(|error| misplaced(work, "", error))?;
    let from = format!(" FROM {} WHERE false", table.name);
    let params = Params { count: work.params.len(), types: &types };
    for (pointer, expression) in expressions(work) {
        let types = try_expression(session, &pointer, expression, &from, params)?;
        if pointer.starts_with("/insert_select") {
            of_one_row(session, &pointer, expression, &table.name, &types)?;
        }
    }
    Ok(())
}

/// An expression of one row: in a WHERE the server takes no aggregate, no window and no set. In a SELECT it does, and a
/// batch would insert something that depends on its size. `types` are those that the server gave all parameters in the
/// SELECT.
fn of_one_row(
    session: &mut Session,
    pointer: &str,
    expression: &str,
    table: &str,
    types: &[u32],
) -> Result<(), Misplaced> {
    let sql = format!("SELECT 1 FROM {table} WHERE {} IS NULL", enclosed(expression));
    match session.prepare(&sql, types) {
        Ok(_) => Ok(()),
        Err(error) if ["42803", "42P20", "0A000"].contains(&error.sqlstate.as_deref().unwrap_or_default()) => {
            let message = format!("expected an expression of one row: {}", error.message);
            let error = WorkError::Fail(JobError::new(ErrorCode::ExpressionNotAllowed, message));
            Err(Misplaced::within(pointer, error))
        }
        Err(error) => Err(Misplaced::within(pointer, without_position(error))),
    }
}

/// The parameters that an expression may name, and the types that they name themselves.
#[derive(Clone, Copy, Default)]
pub(in crate::kinds) struct Params<'t> {
    count: usize,
    types: &'t [u32],
}

/// As `try_expressions`, for one of them. Returns the types of the parameters.
pub(in crate::kinds) fn try_expression(
    session: &mut Session,
    pointer: &str,
    expression: &str,
    from: &str,
    params: Params<'_>,
) -> Result<Vec<u32>, Misplaced> {
    // Every parameter is named: the server wants to know the type of each up to the last.
    let all: String = (1..=params.count).map(|n| format!(", ${n}")).collect();
    let described =
        session.prepare(&format!("{TRIED_BEHIND}{expression}\n){all}{from}"), params.types).map_err(|error| {
            let behind = u32::try_from(TRIED_BEHIND.len()).unwrap_or(0);
            let position =
                error.position.and_then(|position| position.checked_sub(behind)).filter(|position| *position > 0);
            Misplaced::within(pointer, PqError { position, ..error }.into())
        })?;
    if described.columns.len() != 1 + params.count {
        let error = JobError::new(ErrorCode::ExpressionNotAllowed, "expected one SQL expression");
        return Err(Misplaced::within(pointer, WorkError::Fail(error)));
    }
    Ok(described.params)
}

/// The caller's expressions, each with its argument, in the order in which they stand in the statement.
fn expressions(work: &Backfill) -> Vec<(String, &str)> {
    let set = work.set.iter().flatten().map(|(name, value)| (format!("/set{}", step(name)), value.as_str()));
    let select = work.insert_select.iter().flat_map(|insert| insert.select.iter().enumerate());
    let select = select.map(|(n, value)| (format!("/insert_select/select/{n}"), value.as_str()));
    let condition = work.condition.as_deref().map(|condition| ("/where".to_owned(), condition));
    set.chain(select).chain(condition).collect()
}

/// Why the statement `tried` can't be had, with the argument that it is about: a value, or the expression in which the
/// server points at a place.
fn misplaced(work: &Backfill, tried: &str, error: PrepareError) -> Misplaced {
    let place = match &error {
        PrepareError::Server(server) => server.position.and_then(|position| place_of(work, tried, position)),
        error => error.place(),
    };
    let error = error.or_server(without_position);
    match place {
        Some(place) => Misplaced::at(place, error),
        None => work.whole(error),
    }
}

fn place_of(work: &Backfill, tried: &str, position: u32) -> Option<String> {
    let before = usize::try_from(position).ok()?.checked_sub(1)?;
    let (at, _) = tried.char_indices().nth(before)?;
    let mut from = 0;
    for (pointer, expression) in expressions(work) {
        let enclosed = enclosed(expression);
        let begin = from + tried.get(from..)?.find(&enclosed)?;
        from = begin + enclosed.len();
        if (begin..from).contains(&at) {
            return Some(pointer);
        }
    }
    None
}

/// A position in a statement that is ours says nothing to the caller.
pub(super) fn without_position(error: PqError) -> WorkError {
    PqError { position: None, ..error }.into()
}
