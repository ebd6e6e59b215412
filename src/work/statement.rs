//! `statement`: an operator's saved statement, by its name and with a caller's values. What runs is the kind that the
//! statement's file names, with the arguments that the file makes of the values.
//!
//! No [`Work`](crate::work::Work) of its own: the [`Registry`](crate::work::Registry) looks a statement up where it asks
//! for any other kind. A worker looks it up in its own folder when it begins, whatever the process that accepted the job
//! had in its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::queue::{ErrorCode, JobError};
use crate::statements::{Statement, Statements, ValueError};
use crate::work::arguments::{invalid_args, parse};
use crate::work::context::WorkContext;
use crate::work::validation::Validation;
use crate::work::{ArgError, CheckError, WorkError};

/// The kind of saved statements.
pub const STATEMENT: &str = "statement";

/// The arguments of a `statement`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SavedStatement {
    /// The statement's name, as `GET /v1/statements` lists it.
    pub name: String,
    /// Values by the names of the parameters; each keeps the literal that you wrote. Its schema is in the list.
    #[serde(default)]
    #[schema(value_type = std::collections::HashMap<String, serde_json::Value>)]
    pub params: BTreeMap<String, Box<RawValue>>,
}

/// What a kind refuses, as pairs of a pointer and what was expected.
pub(super) fn pairs(refused: CheckError) -> Vec<(String, String)> {
    refused.errors.into_iter().map(|error| (error.pointer, error.detail)).collect()
}

/// A saved statement, and its kind's arguments for a job's values.
pub(super) struct Resolved {
    pub statement: Arc<Statement>,
    pub args: Box<RawValue>,
}

/// Why a job's saved statement can't be had.
pub(super) enum Unresolved {
    /// There is none of this name.
    Unknown(String, CheckError),
    /// The arguments aren't right.
    Refused(CheckError),
}

/// The statement that a job with these arguments names.
pub(super) fn named(statements: &Statements, args: &RawValue) -> Result<Arc<Statement>, Unresolved> {
    let job = parsed(args).map_err(Unresolved::Refused)?;
    find(statements, &job.name)
}

fn parsed(args: &RawValue) -> Result<SavedStatement, CheckError> {
    parse::<SavedStatement>(args).map_err(|error| CheckError { errors: vec![error] })
}

fn find(statements: &Statements, name: &str) -> Result<Arc<Statement>, Unresolved> {
    let loaded = statements.loaded();
    loaded.statements.get(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = loaded.statements.keys().map(String::as_str).collect();
        let detail = match known.as_slice() {
            [] => "expected the name of a saved statement; there is none".to_owned(),
            known => format!("expected one of: {}", known.join(", ")),
        };
        Unresolved::Unknown(name.to_owned(), CheckError { errors: vec![ArgError::new("/name", detail)] })
    })
}

fn of_values(errors: Vec<ValueError>) -> CheckError {
    let error = |error: ValueError| ArgError::new(format!("/params{}", error.pointer), error.detail);
    CheckError { errors: errors.into_iter().map(error).collect() }
}

impl Resolved {
    /// The arguments of a job for its statement.
    pub fn of(statement: Arc<Statement>, args: &RawValue) -> Result<Resolved, CheckError> {
        let args = statement.arguments(&parsed(args)?.params).map_err(of_values)?;
        Ok(Resolved { statement, args })
    }

    /// What the kind refuses, as the job's caller knows it.
    pub fn translated(&self, refused: CheckError) -> CheckError {
        let error = |error: &ArgError| ArgError::new(self.argument(&error.pointer), error.detail.clone());
        CheckError { errors: refused.errors.iter().map(error).collect() }
    }

    /// The caller's argument that an argument of the kind comes from: a value, or the name for what the operator wrote.
    fn argument(&self, pointer: &str) -> String {
        let n = pointer.rsplit_once("/params/").and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        let param = n.and_then(|n: usize| self.statement.params.get(n)).filter(|_| !pointer.ends_with("/type"));
        param.map_or("/name".to_owned(), |param| format!("/params/{}", param.name))
    }

    /// What was found of it, by the arguments of its caller.
    pub fn as_called(&self, mut found: Validation) -> Validation {
        for problem in &mut found.problems {
            problem.pointer = format!("/args{}", self.argument(&problem.pointer));
            problem.error.message = self.by_name(&problem.error.message);
        }
        for statement in &mut found.statements {
            statement.pointer = Some("/args/name".to_owned());
        }
        found
    }

    /// An error whose message begins with the place of a value has the value's name there.
    pub fn as_its_caller_knows_it(&self, error: WorkError) -> WorkError {
        let named = |error: JobError| JobError { message: self.by_name(&error.message), ..error };
        match error {
            WorkError::Retry(error) => WorkError::Retry(named(error)),
            WorkError::Fail(error) => WorkError::Fail(named(error)),
            other => other,
        }
    }

    fn by_name(&self, message: &str) -> String {
        match message.split_once(": ") {
            Some((place, rest)) if place.starts_with('/') && place.contains("/params/") => {
                match self.argument(place).as_str() {
                    "/name" => message.to_owned(),
                    argument => format!("{argument}: {rest}"),
                }
            }
            _ => message.to_owned(),
        }
    }
}

/// The process that accepted the job may be of a newer deployment than this one.
pub(super) fn unknown_here(name: &str) -> WorkError {
    let message = format!("this process has no saved statement {name}");
    let error = JobError::new(ErrorCode::UnknownStatement, message).retryable();
    WorkError::Retry(error.with_hint("give every process the same folder of statements, and reload it"))
}

/// Makes the arguments of what an attempt is to run, and notes which version of the statement that is before anything of it
/// runs.
pub(super) fn begin(statement: Arc<Statement>, args: &RawValue, ctx: &WorkContext<'_>) -> Result<Resolved, WorkError> {
    let fail = |code: ErrorCode, message: String| Err(WorkError::Fail(JobError::new(code, message)));
    let resolved = Resolved::of(statement, args).map_err(invalid_args)?;
    let statement = &resolved.statement;
    if statement.target != ctx.target_name() {
        let message = format!("the saved statement {} runs on the target {} only", statement.name, statement.target);
        return fail(ErrorCode::InvalidArgs, message);
    }
    // Whatever the file says that it is now: what has a checkpoint goes on as what it began as.
    let other = ctx.statement_version().is_some_and(|version| version != statement.version);
    if other && ctx.checkpoint::<IgnoredAny>()?.is_some() {
        let message = format!("the saved statement {} was changed while this job was under way", statement.name);
        let error = JobError::new(ErrorCode::StatementChanged, message).retryable();
        let hint = "put the file back as it was, or look at what was done and submit what is left as a new job";
        return Err(WorkError::Retry(error.with_hint(hint)));
    }
    ctx.use_settings_of(statement);
    ctx.note_statement(statement)?;
    Ok(resolved)
}
