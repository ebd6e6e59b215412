//! Having the server describe and plan statements that a job would run, without running them.
//!
//! Statements are described and planned (EXPLAIN, never ANALYZE), each in a read-only transaction of its own that is rolled
//! back. Knows no job but by its context.

use std::ffi::CString;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::kinds::prepare_error::PrepareError;
use crate::kinds::prepared::{Prepared, type_names};
use crate::kinds::returns::returns_rows;
use crate::kinds::{hints, reads};
use crate::pq::{PqError, Session};
use crate::queue::RawJson;
use crate::work::validation::{PlanColumn, StatementPlan, Validation};
use crate::work::{WorkContext, WorkError};

/// The longest that the server may take for one statement.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// A statement of a caller's, and how its kind would run it.
pub(super) struct Looked<'s> {
    /// A JSON pointer from the job to what holds `sql` and `params`.
    pub at: &'s str,
    /// Its text.
    pub sql: &'s str,
    /// Its values.
    pub params: &'s [Box<RawValue>],
    /// SQL: what its kind sets in the transaction first.
    pub settings: &'s str,
    /// It runs in a transaction that only reads.
    pub reads: bool,
    /// It has to return rows.
    pub returns_rows: bool,
    /// What the kind makes of an error of the server's.
    pub refused: fn(PqError, &str) -> WorkError,
}

/// Has the server describe a statement and plan it, in a transaction that is rolled back.
///
/// # Errors
/// What the job would end with, and a JSON pointer to its text or to the value that it is about.
pub(super) fn look_at(
    session: &mut Session,
    ctx: &WorkContext<'_>,
    looked: &Looked<'_>,
) -> Result<StatementPlan, (String, WorkError)> {
    match look_and_roll_back(session, ctx, looked) {
        Ok(outcome) => outcome,
        Err(error) => Err(looked.about_text(error)),
    }
}

type Outcome = Result<StatementPlan, (String, WorkError)>;

fn look_and_roll_back(session: &mut Session, ctx: &WorkContext<'_>, looked: &Looked<'_>) -> Result<Outcome, WorkError> {
    ctx.check()?;
    let left = ctx.statement_ms(ctx.remaining().min(TIMEOUT));
    let settings = looked.settings;
    session.execute_batch(&format!("BEGIN TRANSACTION READ ONLY; SET LOCAL statement_timeout = {left}; {settings}"))?;
    let looked_at = looked.describe_and_plan(session);
    session.execute_batch("ROLLBACK")?;
    Ok(looked_at)
}

/// What work would meet that has no statement of a caller's to look at: a target that isn't as the work `needs` it, or what
/// `look` finds, with the argument that it is about.
pub(super) fn look_at_target(
    ctx: &WorkContext<'_>,
    needs: fn(&mut Session) -> Result<(), WorkError>,
    look: impl FnOnce(&mut Session) -> Result<(), (String, WorkError)>,
) -> Result<Validation, WorkError> {
    let mut session = ctx.session()?;
    let mut validation = Validation { valid: true, ..Validation::default() };
    let target = needs(&mut session).map_err(|error| ("/target".to_owned(), error));
    let outcome =
        target.and_then(|()| look(&mut session).map_err(|(argument, error)| (format!("/args{argument}"), error)));
    if let Err((pointer, error)) = outcome {
        validation.stands_in_the_way(pointer, error)?;
    }
    Ok(validation)
}

impl Looked<'_> {
    fn pointer(&self) -> String {
        format!("{}/sql", self.at)
    }

    fn about_text(&self, error: WorkError) -> (String, WorkError) {
        (self.pointer(), error)
    }

    /// About one of the values, or the text.
    fn placed(&self, error: PrepareError) -> (String, WorkError) {
        let pointer = error.place().map_or_else(|| self.pointer(), |place| format!("{}{place}", self.at));
        (pointer, error.or_server(|error| (self.refused)(error, self.sql)))
    }

    fn describe_and_plan(&self, session: &mut Session) -> Outcome {
        let prepared = Prepared::new(session, self.sql, self.params).map_err(|error| self.placed(error))?;
        let plan = match reads::is_planned(self.sql) {
            true => Some(
                plan(session, self.sql, &prepared.parameters, &prepared.values)
                    .map_err(|error| self.placed(PrepareError::of_run(error)))?,
            ),
            false => None,
        };
        self.described(session, &prepared, plan).map_err(|error| self.about_text(error))
    }

    fn described(
        &self,
        session: &mut Session,
        prepared: &Prepared<'_>,
        plan: Option<RawJson>,
    ) -> Result<StatementPlan, WorkError> {
        if self.returns_rows {
            returns_rows(prepared, self.sql)?;
        }
        let parameters = type_names(session, &prepared.cast_types())?;
        let types: Vec<(u32, i32)> =
            prepared.columns.iter().map(|column| (column.type_oid, column.type_modifier)).collect();
        let named = prepared.columns.iter().zip(type_names(session, &types)?);
        let columns = named.map(|(column, type_name)| PlanColumn { name: column.name.clone(), type_name }).collect();
        if self.reads {
            self.check_that_it_reads(session, prepared, plan.as_ref())?;
        }
        let (estimated_rows, estimated_cost) = plan.as_ref().map_or((None, None), estimates);
        let pointer = Some(self.pointer());
        Ok(StatementPlan { pointer, parameters, columns, estimated_rows, estimated_cost, plan })
    }

    /// What the run would refuse. The last look: the transaction may be of no further use.
    fn check_that_it_reads(
        &self,
        session: &mut Session,
        prepared: &Prepared<'_>,
        planned: Option<&RawJson>,
    ) -> Result<(), WorkError> {
        let refused = |error| hints::for_reader(error, self.returns_rows);
        reads::check_words(self.sql).map_err(refused)?;
        let Some(part) = reads::planned_part(self.sql) else { return Ok(()) };
        let types = &prepared.parameters;
        let of_part = match planned {
            Some(_) => None,
            None => Some(plan(session, part, types, &prepared.values)?),
        };
        planned.or(of_part.as_ref()).map_or(Ok(()), reads::check_plan).map_err(refused)?;
        // An EXPLAIN has columns of its own, whatever it runs.
        match planned.is_none() || prepared.columns.is_empty() {
            true => reads::check_into(session, part, types).map_err(refused),
            false => Ok(()),
        }
    }
}

/// As [`look_at`], of a statement that the work makes itself, in the transaction that the session is in.
pub(super) fn plan_own(
    session: &mut Session,
    sql: &str,
    types: &[u32],
    values: &[Option<CString>],
) -> Result<StatementPlan, PqError> {
    let plan = plan(session, sql, types, values)?;
    let (estimated_rows, estimated_cost) = estimates(&plan);
    let (parameters, columns) = (Vec::new(), Vec::new());
    Ok(StatementPlan { pointer: None, parameters, columns, estimated_rows, estimated_cost, plan: Some(plan) })
}

/// What the server would do with a statement whose parameters have these types and values.
///
/// The one place where a caller's text stands behind one of ours: the options before it are closed, the protocol
/// takes one statement only, and what the server doesn't plan is a syntax error there.
fn plan(session: &mut Session, sql: &str, types: &[u32], values: &[Option<CString>]) -> Result<RawJson, PqError> {
    session.prepare(&format!("EXPLAIN (FORMAT JSON) {sql}"), types)?;
    let mut rows = session.stream(values)?;
    let mut text = String::new();
    while let Some(chunk) = rows.next_chunk()? {
        for row in 0..chunk.rows() {
            text.push_str(&String::from_utf8_lossy(chunk.value(row, 0).unwrap_or_default()));
        }
    }
    RawValue::from_string(text)
        .map(RawJson)
        .map_err(|error| PqError::connection_lost(&format!("the server's plan can't be read: {error}")))
}

/// What is read of a plan.
#[derive(Deserialize)]
struct Explained {
    #[serde(rename = "Plan")]
    top: Node,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(rename = "Node Type")]
    node_type: String,
    #[serde(rename = "Plan Rows")]
    rows: i64,
    #[serde(rename = "Total Cost")]
    cost: f64,
    #[serde(default)]
    plans: Vec<Below>,
}

/// A node below the first. What is below it is skipped: a plan may be nested deeper than a parser goes.
#[derive(Deserialize)]
struct Below {
    #[serde(rename = "Plan Rows")]
    rows: i64,
}

/// Rows and cost. What changes a table says nothing of its rows but by what it takes them from.
pub(super) fn estimates(plan: &RawJson) -> (Option<i64>, Option<f64>) {
    let plans: Vec<Explained> = serde_json::from_str(plan.text()).unwrap_or_default();
    let Some(Explained { top }) = plans.into_iter().next() else { return (None, None) };
    let changes = top.node_type == "ModifyTable" && top.rows == 0;
    let rows = if changes { top.plans.first().map(|node| node.rows) } else { Some(top.rows) };
    (rows, Some(top.cost))
}
