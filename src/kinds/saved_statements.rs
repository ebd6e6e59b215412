//! What a saved statement would meet on its target, before anybody runs it: parsed, described, its rights checked, and
//! planned without a value. Nothing is run, and each look is rolled back.
//!
//! For a deployment that wants to know; needs a session, and neither a queue nor a job.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::kinds::planning::estimates;
use crate::kinds::prepared::Prepared;
use crate::kinds::sql::first_words;
use crate::kinds::{backfill, execute, hints, query, reads, refresh, returns};
use crate::pq::{PqError, Session};
use crate::queue::{JobError, RawJson};
use crate::statements::file::Sql;
use crate::statements::{InnerKind, Statement};
use crate::target::prologue::{ROW_FORM_SQL, refuses_time_zone};
use crate::work::context::unknown_time_zone;
use crate::work::{self, WorkError};

/// The longest that the server may take for one statement, in milliseconds.
const TIMEOUT_MS: u32 = 10_000;
/// What an earlier statement of the same file may have made: no such table, column, function, type or schema.
const MAYBE_MADE: [&str; 5] = ["42P01", "42703", "42883", "42704", "3F000"];

/// What stands in a statement's way.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The line of its file.
    pub line: usize,
    /// It may be so for the check alone: an earlier statement of the file may make what is missing.
    pub uncertain: bool,
    /// What a job would end with.
    pub error: JobError,
}

/// What the server says of one statement of SQL.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// The line of its file.
    pub line: usize,
    /// Rows that it returns, or changes, by the planner's estimate.
    pub estimated_rows: Option<i64>,
    /// The planner's cost, in its own unit.
    pub estimated_cost: Option<f64>,
    /// `EXPLAIN (FORMAT JSON)` of the plan that serves any values.
    pub plan: RawJson,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// What stands in its way.
    pub findings: Vec<Finding>,
    /// The lines of statements of which the server says nothing before they run: only their syntax was looked at.
    pub unplanned: Vec<usize>,
    /// Its plans, where the server plans anything.
    pub plans: Vec<Planned>,
}

impl Checked {
    /// Nothing stands in its way for certain.
    pub fn is_valid(&self) -> bool {
        self.findings.iter().all(|finding| finding.uncertain)
    }
}

/// Looks at a statement by a session of its target's role. `read_only`: the target's sessions can only read.
///
/// # Errors
/// What says nothing about the statement: a lost connection.
pub fn check(session: &mut Session, statement: &Statement, read_only: bool) -> Result<Checked, WorkError> {
    let mut checked = Checked::default();
    if let Err(error) = set_time_zone(session, statement) {
        checked.findings.push(finding(statement.line_of("/time_zone"), false, error)?);
        return Ok(checked);
    }
    let args = statement.arguments_without_values();
    // A standby, or a role whose transactions only read, is as good as a declaration.
    let read_only = read_only || reads::others_only_read(session)?;
    let outcome = match statement.kind {
        InnerKind::Query | InnerKind::Execute => return each_sql(session, statement, read_only),
        _ if read_only => {
            let error = reads::read_only("the target can only be read, and this kind changes something");
            Err((String::new(), error))
        }
        InnerKind::Refresh => work::read::<refresh::Refresh>(&args)
            .and_then(|refresh| refresh.look(session))
            .map_err(|error| ("/view".to_owned(), error)),
        InnerKind::Backfill => work::read::<backfill::Backfill>(&args)
            .map_err(|error| (String::new(), error))
            .and_then(|backfill| rolled_back(session, |session| backfill.look_without_values(session))),
    };
    if let Err((pointer, error)) = outcome {
        checked.findings.push(finding(statement.line_of(&pointer), false, error)?);
    }
    Ok(checked)
}

/// As its session is set when it runs. The session may have been another statement's before.
fn set_time_zone(session: &mut Session, statement: &Statement) -> Result<(), WorkError> {
    session.execute_batch("RESET TimeZone")?;
    let Some(zone) = &statement.time_zone else { return Ok(()) };
    match session.query("SELECT pg_catalog.set_config('TimeZone', $1, false)", &[Some(zone)]) {
        Err(error) if refuses_time_zone(error.sqlstate.as_deref(), &error.message) => Err(unknown_time_zone(zone)),
        outcome => Ok(outcome.map(drop)?),
    }
}

fn finding(line: usize, uncertain: bool, error: WorkError) -> Result<Finding, WorkError> {
    match error {
        WorkError::Fail(error) => Ok(Finding { line, uncertain, error }),
        other => Err(other),
    }
}

fn each_sql(session: &mut Session, statement: &Statement, read_only: bool) -> Result<Checked, WorkError> {
    let mut checked = Checked::default();
    let params: Vec<Box<RawValue>> = nulls(statement);
    let reads = read_only || statement.kind == InnerKind::Query;
    // What statements that came before may have made: their texts.
    let mut made: Vec<String> = Vec::new();
    for sql in &statement.sql {
        let alone = if statement.kind == InnerKind::Execute { execute::not_in_a_transaction(&sql.text) } else { None };
        let looked =
            alone.map_or_else(|| rolled_back(session, |session| look(session, statement, sql, &params, reads)), Err);
        match looked {
            Ok(Some(plan)) => checked.plans.push(plan),
            Ok(None) => checked.unplanned.push(sql.line),
            Err(error) => {
                let uncertain = matches!(&error, WorkError::Fail(error) if may_be_made(error, &made));
                let line = sql.line + lines_before(&sql.text, &error);
                checked.findings.push(finding(line, uncertain, error)?);
            }
        }
        if may_make(&sql.text) {
            made.push(sql.text.to_lowercase());
        }
    }
    Ok(checked)
}

/// A statement of this kind can leave something behind that a later one uses.
fn may_make(sql: &str) -> bool {
    let words = first_words(sql, 1);
    let first = words.first().map(String::as_str).unwrap_or_default();
    let into = ["SELECT", "WITH"].contains(&first) && sql.to_ascii_uppercase().contains("INTO");
    ["CREATE", "ALTER", "DO", "CALL"].contains(&first) || into
}

/// What is missing is named by an earlier statement that may have made it; what a DO or a CALL makes isn't known.
fn may_be_made(error: &JobError, made: &[String]) -> bool {
    let missing = error.sqlstate.as_deref().is_some_and(|state| MAYBE_MADE.contains(&state));
    let names: Vec<String> = error.message.split('"').skip(1).step_by(2).map(str::to_lowercase).collect();
    let made_by = |text: &String| {
        let unknown = ["DO", "CALL"].contains(&first_words(text, 1).first().map(String::as_str).unwrap_or_default());
        unknown || names.is_empty() || names.iter().any(|name| text.contains(name.rsplit('.').next().unwrap_or(name)))
    };
    missing && made.iter().any(made_by)
}

fn nulls(statement: &Statement) -> Vec<Box<RawValue>> {
    let null = |type_name: &String| {
        let typed = serde_json::json!({"type": type_name, "value": null}).to_string();
        RawValue::from_string(typed).unwrap_or_default()
    };
    statement.params.iter().map(|param| null(&param.type_name)).collect()
}

/// Lines of a statement before the place that an error names.
fn lines_before(sql: &str, error: &WorkError) -> usize {
    let position = match error {
        WorkError::Fail(error) => error.position,
        _ => None,
    };
    let before = position.and_then(|position| usize::try_from(position).ok()).unwrap_or(1);
    sql.chars().take(before.saturating_sub(1)).filter(|c| *c == '\n').count()
}

/// Looks within a read-only transaction that is rolled back.
fn rolled_back<T, E: From<WorkError>>(
    session: &mut Session,
    look: impl FnOnce(&mut Session) -> Result<T, E>,
) -> Result<T, E> {
    let begin = format!("BEGIN TRANSACTION READ ONLY; SET LOCAL statement_timeout = {TIMEOUT_MS}");
    session.execute_batch(&begin).map_err(WorkError::from)?;
    let outcome = look(session);
    // A statement that was prepared outlives its transaction.
    session.execute_batch("ROLLBACK; DEALLOCATE ALL").map_err(WorkError::from)?;
    outcome
}

impl From<WorkError> for (String, WorkError) {
    fn from(error: WorkError) -> Self {
        (String::new(), error)
    }
}

fn look(
    session: &mut Session,
    statement: &Statement,
    sql: &Sql,
    params: &[Box<RawValue>],
    reads: bool,
) -> Result<Option<Planned>, WorkError> {
    let is_query = statement.kind == InnerKind::Query;
    let server = |error: PqError| {
        if is_query { query::not_a_query(error, &sql.text) } else { execute::refused(error, &sql.text) }
    };
    let reader = |error: WorkError| hints::for_reader(error, is_query);
    if is_query {
        session.execute_batch(ROW_FORM_SQL)?;
    }
    let prepared = Prepared::new(session, &sql.text, params).map_err(|error| error.or_server(server))?;
    if is_query {
        returns::returns_rows(&prepared, &sql.text)?;
    }
    if reads {
        reads::check_words(&sql.text).map_err(reader)?;
    }
    let planned = reads::is_planned(&sql.text);
    let Some(part) = reads::planned_part(&sql.text).filter(|_| planned || reads) else { return Ok(None) };
    let plan = match generic_plan(session, statement, part) {
        Ok(plan) => plan,
        // On servers before 15 a SELECT … INTO is no statement that can be prepared.
        Err(error) if error.sqlstate.as_deref() == Some("42P14") => {
            return if reads { Err(reader(reads::selects_into())) } else { Ok(None) };
        }
        // NULL is no value of every type.
        Err(error) if matches!(error.sqlstate.as_deref(), Some("23502" | "23514")) => return Ok(None),
        Err(error) => return Err(server(error)),
    };
    if reads {
        reads::check_plan(&plan).map_err(reader)?;
        if !planned || prepared.columns.is_empty() {
            reads::check_into(session, part, &prepared.parameters).map_err(reader)?;
        }
    }
    if !planned {
        return Ok(None);
    }
    let (estimated_rows, estimated_cost) = estimates(&plan);
    Ok(Some(Planned { line: sql.line, estimated_rows, estimated_cost, plan }))
}

/// The plan that serves any values. That of NULLs alone would say nothing: the server knows that nothing equals NULL.
///
/// The text is the operator's own, stands behind words of ours and is one statement for the protocol; servers before 16
/// have no EXPLAIN (GENERIC_PLAN).
fn generic_plan(session: &mut Session, statement: &Statement, sql: &str) -> Result<RawJson, PqError> {
    session.execute_batch("SET LOCAL plan_cache_mode = force_generic_plan")?;
    let types: Vec<&str> = statement.params.iter().map(|param| param.type_name.as_str()).collect();
    let (types, values) = match types.len() {
        0 => (String::new(), String::new()),
        n => (format!("({})", types.join(", ")), format!("({})", vec!["NULL"; n].join(", "))),
    };
    session.query(&format!("PREPARE slowlane_look {types} AS {sql}"), &[]).map_err(|error| behind(error, &types))?;
    let rows = session.query(&format!("EXPLAIN (FORMAT JSON) EXECUTE slowlane_look {values}"), &[])?;
    let text = rows.get(0, 0).unwrap_or_default().to_owned();
    RawValue::from_string(text)
        .map(RawJson)
        .map_err(|error| PqError::connection_lost(&format!("the server's plan can't be read: {error}")))
}

/// An error's place in the operator's text.
fn behind(error: PqError, types: &str) -> PqError {
    let ours = "PREPARE slowlane_look  AS ".chars().count() + types.chars().count();
    let ours = u32::try_from(ours).unwrap_or(u32::MAX);
    PqError { position: error.position.and_then(|position| position.checked_sub(ours)), ..error }
}
