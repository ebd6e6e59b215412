//! `validate`: what another job would meet on its target, without running it: whether its statements can be parsed and may
//! be run, what its parameters are taken for, and how the server would go about it.
//!
//! `POST /v1/jobs/validate` puts one in and waits for it, so that only workers need to know a target. Statements are
//! described and planned (EXPLAIN, never ANALYZE), each in a read-only transaction of its own that is rolled back.

use std::ffi::CString;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::kinds::context::WorkContext;
use crate::kinds::prepared::{Prepared, type_names};
use crate::kinds::registry::statements_only;
use crate::kinds::sql::first_word;
use crate::kinds::{ArgError, STATEMENT, VALIDATE, Work, WorkError};
use crate::pq::{PqError, Session};
use crate::queue::{ErrorCode, JobError, RawJson};

/// The longest that the server may take for one statement, in milliseconds.
pub(super) const TIMEOUT_MS: u128 = 10_000;
/// What the server can plan.
const PLANNED: [&str; 8] = ["SELECT", "WITH", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE"];

/// The arguments of a `validate`: the job that is looked at.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// Its kind.
    pub kind: String,
    /// Its arguments.
    #[schema(value_type = serde_json::Value)]
    pub args: Box<RawValue>,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Validation {
    /// The job can begin, as far as can be told.
    pub valid: bool,
    /// What stands in its way.
    pub problems: Vec<ValidationProblem>,
    /// Its statements, in the order of its arguments.
    pub statements: Vec<StatementPlan>,
    /// For work that goes in batches: how many there would be if all were as large as the first, by the planner's estimate of
    /// the table.
    pub estimated_batches: Option<i64>,
}

/// Something that stands in a job's way.
#[derive(Debug, Serialize)]
pub struct ValidationProblem {
    /// A JSON pointer from the job, such as `/args/sql`.
    pub pointer: String,
    /// What the job would end with.
    pub error: JobError,
}

/// What the server says of a statement.
#[derive(Debug, Serialize)]
pub struct StatementPlan {
    /// A JSON pointer from the job to its text; `null` for one that the work makes itself.
    pub pointer: Option<String>,
    /// The types of its parameters, `$1` first.
    pub parameters: Vec<String>,
    /// Its columns; none when it returns no rows.
    pub columns: Vec<PlanColumn>,
    /// Rows that it returns, or changes, by the planner's estimate; `null` where the server plans nothing.
    pub estimated_rows: Option<i64>,
    /// The planner's cost, in its own unit.
    pub estimated_cost: Option<f64>,
    /// `EXPLAIN (FORMAT JSON)`.
    pub plan: Option<RawJson>,
}

/// A column of a statement.
#[derive(Debug, Serialize)]
pub struct PlanColumn {
    /// Its name.
    pub name: String,
    /// Its type, as Postgres writes it.
    #[serde(rename = "type")]
    pub type_name: String,
}

impl Validation {
    /// What was found of statements, each with its pointer.
    pub(super) fn of(looked_at: Vec<(String, Result<StatementPlan, WorkError>)>) -> Result<Validation, WorkError> {
        let mut validation = Validation { valid: true, ..Validation::default() };
        for (pointer, outcome) in looked_at {
            match outcome {
                Ok(plan) => validation.statements.push(plan),
                Err(error) => validation.stands_in_the_way(pointer, error)?,
            }
        }
        Ok(validation)
    }

    /// The same, with one pointer for everything: where the caller wrote none of what was looked at.
    pub(super) fn at(mut self, pointer: &str) -> Validation {
        for problem in &mut self.problems {
            pointer.clone_into(&mut problem.pointer);
        }
        for statement in &mut self.statements {
            statement.pointer = Some(pointer.to_owned());
        }
        self
    }

    /// Notes what the job would fail with.
    ///
    /// # Errors
    /// What says nothing about the job: that the target can't be reached, or that this attempt is to end.
    pub(super) fn stands_in_the_way(&mut self, pointer: String, error: WorkError) -> Result<(), WorkError> {
        match error {
            WorkError::Fail(error) => {
                self.valid = false;
                self.problems.push(ValidationProblem { pointer, error });
                Ok(())
            }
            other => Err(other),
        }
    }
}

impl Work for Validate {
    const KIND: &'static str = VALIDATE;
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Validation;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        if self.kind == Self::KIND {
            return Err(vec![ArgError::new("/kind", "expected the kind of a job that does something")]);
        }
        Ok(())
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Validation, WorkError> {
        let registry = ctx.registry();
        if ctx.is_statements_only() && self.kind != STATEMENT {
            return Err(statements_only(ctx));
        }
        if let Err(refused) = registry.check(&self.kind, &self.args) {
            let problem = |error: ArgError| ValidationProblem {
                pointer: format!("/args{}", error.pointer),
                error: JobError::new(ErrorCode::InvalidArgs, error.detail),
            };
            return Ok(Validation {
                problems: refused.errors.into_iter().map(problem).collect(),
                ..Validation::default()
            });
        }
        registry.validate(&self.kind, &self.args, ctx)
    }
}

/// Has the server describe a statement and plan it, in a transaction that is rolled back. `check` looks at what it described.
pub(super) fn look_at(
    session: &mut Session,
    ctx: &WorkContext<'_>,
    pointer: &str,
    (sql, params): (&str, &[Box<RawValue>]),
    check: impl FnOnce(&Prepared<'_>) -> Result<(), WorkError>,
) -> Result<StatementPlan, WorkError> {
    ctx.check()?;
    let left = ctx.remaining().as_millis().clamp(1, TIMEOUT_MS);
    session.execute_batch(&format!("BEGIN TRANSACTION READ ONLY; SET LOCAL statement_timeout = {left}"))?;
    let looked_at = describe_and_plan(session, pointer, sql, params, check);
    session.execute_batch("ROLLBACK")?;
    looked_at
}

fn describe_and_plan(
    session: &mut Session,
    pointer: &str,
    sql: &str,
    params: &[Box<RawValue>],
    check: impl FnOnce(&Prepared<'_>) -> Result<(), WorkError>,
) -> Result<StatementPlan, WorkError> {
    let prepared = Prepared::new(session, sql, params).map_err(|error| error.or_server(WorkError::from))?;
    check(&prepared)?;
    let named = |session: &mut Session, types: Vec<(u32, i32)>| type_names(session, &types);
    let parameters = named(session, prepared.parameters.iter().map(|oid| (*oid, -1)).collect())?;
    let types =
        named(session, prepared.columns.iter().map(|column| (column.type_oid, column.type_modifier)).collect())?;
    let columns = prepared
        .columns
        .iter()
        .zip(types)
        .map(|(column, type_name)| PlanColumn { name: column.name.clone(), type_name });
    let columns = columns.collect();
    let plan = match is_planned(sql) {
        true => Some(plan(session, sql, &prepared.parameters, &prepared.values)?),
        false => None,
    };
    let (estimated_rows, estimated_cost) = plan.as_ref().map_or((None, None), estimates);
    Ok(StatementPlan { pointer: Some(pointer.to_owned()), parameters, columns, estimated_rows, estimated_cost, plan })
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

pub(super) fn is_planned(sql: &str) -> bool {
    first_word(sql).is_some_and(|word| word == "(" || PLANNED.iter().any(|known| word.eq_ignore_ascii_case(known)))
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
    plans: Vec<Node>,
}

/// Rows and cost. What changes a table says nothing of its rows but by what it takes them from.
pub(super) fn estimates(plan: &RawJson) -> (Option<i64>, Option<f64>) {
    let plans: Vec<Explained> = serde_json::from_str(plan.text()).unwrap_or_default();
    let Some(Explained { top }) = plans.into_iter().next() else { return (None, None) };
    let changes = top.node_type == "ModifyTable" && top.rows == 0;
    let counted = if changes { top.plans.first() } else { Some(&top) };
    (counted.map(|node| node.rows), Some(top.cost))
}
