//! What a job would meet on its target, told without running it: the kind `validate`, which looks at jobs of other kinds, and
//! what it finds.
//!
//! `POST /v1/jobs/validate` puts one in and waits for it, so that only workers need to know a target. The registry runs it: it
//! has the other kinds.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::queue::{ErrorCode, JobError, RawJson};
use crate::work::context::WorkContext;
use crate::work::{ArgError, CheckError, VALIDATE, Work, WorkError};

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
    /// What was found of statements; an error has its pointer.
    pub(crate) fn of(looked_at: Vec<Result<StatementPlan, (String, WorkError)>>) -> Result<Validation, WorkError> {
        let mut validation = Validation { valid: true, ..Validation::default() };
        for outcome in looked_at {
            match outcome {
                Ok(plan) => validation.statements.push(plan),
                Err((pointer, error)) => validation.stands_in_the_way(pointer, error)?,
            }
        }
        Ok(validation)
    }

    /// What says that arguments are refused.
    pub(crate) fn refused(refused: CheckError) -> Validation {
        let problem = |error: ArgError| ValidationProblem {
            pointer: format!("/args{}", error.pointer),
            error: JobError::new(ErrorCode::InvalidArgs, error.detail),
        };
        Validation { problems: refused.errors.into_iter().map(problem).collect(), ..Validation::default() }
    }

    /// Notes what the job would fail with.
    ///
    /// # Errors
    /// What says nothing about the job: that the target can't be reached, or that this attempt is to end.
    pub(crate) fn stands_in_the_way(&mut self, pointer: String, error: WorkError) -> Result<(), WorkError> {
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

    /// Without other kinds there is nothing to look at: the registry runs it, and has them.
    fn run(&self, _: &mut WorkContext<'_>) -> Result<Validation, WorkError> {
        let message = format!("this process can't look at jobs of the kind {}", self.kind);
        Err(WorkError::Fail(JobError::new(ErrorCode::UnknownKind, message)))
    }
}
