//! The list of kinds that a process knows, and the way from a job's kind and arguments to the code that checks and runs
//! it.
//!
//! The one place that knows that a saved statement is run as the kind of its file. Knows no queue and no thread.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::kinds::context::WorkContext;
use crate::kinds::{
    ArgError, CheckError, CleanedUp, ON_STATEMENTS_ONLY, STATEMENT, UploadArg, VALIDATE, Validation, Work, WorkError,
    backfill, check as target_check, execute, import, listed, maintain, no_json, query, refresh, statement,
    validate as validation,
};
use crate::pq::Session;
use crate::queue::pointer::step;
use crate::queue::{ErrorCode, JobError, NewJob, RawJson};
use crate::statements::{Loaded, Statement, Statements, UnreadableFolder};

/// What the worker and the HTTP side know of a kind.
struct Entry {
    repeatable: bool,
    fenced: bool,
    resumable: bool,
    produces_result: bool,
    validates: bool,
    validate: fn(&RawValue, &WorkContext<'_>) -> Result<Validation, WorkError>,
    clean_up_after: fn(&RawJson, &mut Session, Instant) -> Result<CleanedUp, WorkError>,
    check: fn(&RawValue) -> Result<Option<UploadArg>, CheckError>,
    run: fn(&RawValue, &mut WorkContext<'_>) -> Result<RawJson, WorkError>,
}

/// What a job names as its saved statement.
#[derive(Clone, Debug)]
pub enum Named {
    /// Nothing: it is of another kind, or its arguments can't be read.
    Other,
    /// One that there isn't: its name, and what was expected.
    Unknown(String, CheckError),
    /// This one.
    Statement(Arc<Statement>),
}

impl Named {
    /// The statement, where there is one.
    pub fn statement(&self) -> Option<&Statement> {
        match self {
            Named::Statement(statement) => Some(statement),
            _ => None,
        }
    }
}

/// The list of kinds that a process knows: it accepts and claims jobs of these, and of no others.
///
/// ```
/// use slowlane::Registry;
/// use slowlane::kinds::query::Query;
///
/// assert_eq!(
///     Registry::standard().names(),
///     ["backfill", "check", "execute", "import", "maintain", "query", "refresh", "validate"]
/// );
/// assert_eq!(Registry::default().with::<Query>().names(), ["query"]);
/// ```
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Entry>,
    /// What the kind `statement` runs, where there is a folder of saved statements.
    statements: Option<Arc<Statements>>,
}

impl Registry {
    /// The kinds that every slowlane has.
    pub fn standard() -> Registry {
        Registry::default()
            .with::<query::Query>()
            .with::<execute::Execute>()
            .with::<import::Import>()
            .with::<backfill::Backfill>()
            .with::<maintain::Maintain>()
            .with::<refresh::Refresh>()
            .with::<validation::Validate>()
            .with::<target_check::Check>()
    }

    /// Adds a kind. One of the same name is replaced.
    pub fn with<W: Work>(mut self) -> Registry {
        let entry = Entry {
            repeatable: W::REPEATABLE,
            fenced: W::FENCED,
            resumable: W::RESUMABLE,
            produces_result: W::PRODUCES_RESULT,
            validates: W::VALIDATES,
            validate: validate::<W>,
            clean_up_after: W::clean_up_after,
            check: check::<W>,
            run: run::<W>,
        };
        self.kinds.insert(W::KIND, entry);
        self
    }

    /// Adds the kind `statement`: whatever the files of a folder let callers run.
    ///
    /// # Errors
    /// When the folder can't be read at all. Files that can't be used are listed, and leave the others.
    pub fn with_statements(mut self, folder: &Path) -> Result<Registry, UnreadableFolder> {
        self.statements = Some(Arc::new(statement::open(folder)?));
        Ok(self)
    }

    /// The saved statements, where there is a folder of them.
    pub fn statements(&self) -> Option<&Arc<Statements>> {
        self.statements.as_ref()
    }

    /// The saved statements that are in effect.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.statements.as_ref().map(|statements| statements.loaded())
    }

    /// The saved statement that a job runs: none where its kind is another one, or there is no statement of its name.
    pub fn statement(&self, kind: &str, args: &RawValue) -> Option<Arc<Statement>> {
        let statements = self.statements_of(kind)?;
        statement::named(statements, args).ok()
    }

    /// What a job names as its saved statement, by the set that is in effect at this moment.
    pub fn named(&self, kind: &str, args: &RawValue) -> Named {
        let Some(statements) = self.statements_of(kind) else { return Named::Other };
        match statement::named(statements, args) {
            Ok(statement) => Named::Statement(statement),
            Err(statement::Unresolved::Unknown(name, refused)) => Named::Unknown(name, refused),
            // What is wrong with the arguments is said where they are checked.
            Err(statement::Unresolved::Refused(_)) => Named::Other,
        }
    }

    fn statements_of(&self, kind: &str) -> Option<&Arc<Statements>> {
        self.statements.as_ref().filter(|_| kind == STATEMENT)
    }

    /// The kind that a job is run as.
    fn entry(&self, kind: &str, args: &RawValue) -> Option<&Entry> {
        match self.statements_of(kind) {
            None => self.kinds.get(kind),
            Some(_) => self.kinds.get(self.statement(kind, args)?.kind.as_str()),
        }
    }

    /// The names of all kinds, in order.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> =
            self.kinds.keys().copied().chain(self.statements.iter().map(|_| STATEMENT)).collect();
        names.sort_unstable();
        names
    }

    /// There is a kind of this name.
    pub fn contains(&self, kind: &str) -> bool {
        self.kinds.contains_key(kind) || self.statements_of(kind).is_some()
    }

    /// A job of this kind and with these arguments keeps a result that can be fetched.
    pub fn produces_result(&self, kind: &str, args: &RawValue) -> bool {
        self.entry(kind, args).is_some_and(|entry| entry.produces_result)
    }

    /// It can be said what the job would meet, without running it.
    pub fn validates(&self, kind: &str, args: &RawValue) -> bool {
        self.entry(kind, args).is_some_and(|entry| entry.validates)
    }

    /// Looks at what work would meet on its target.
    ///
    /// # Errors
    /// As [`Work::validate`].
    pub fn validate(&self, kind: &str, args: &RawValue, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let Some(statements) = self.statements_of(kind) else {
            return (self.known(kind)?.validate)(args, ctx);
        };
        let resolved = statement::resolve(statements, args);
        let resolved = resolved.map_err(|error| {
            let refused = CheckError::from(error);
            WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, refused.to_string()))
        })?;
        ctx.use_settings_of(&resolved.statement);
        let validation = (self.known(resolved.statement.kind.as_str())?.validate)(&resolved.args, ctx)?;
        Ok(resolved.as_called(validation))
    }

    /// Sees to what a job has left that has ended.
    ///
    /// # Errors
    /// As [`Work::clean_up_after`].
    pub fn clean_up_after(
        &self,
        kind: &str,
        kept: &RawJson,
        session: &mut Session,
        until: Instant,
    ) -> Result<CleanedUp, WorkError> {
        (self.known(kind)?.clean_up_after)(kept, session, until)
    }

    fn known(&self, kind: &str) -> Result<&Entry, WorkError> {
        self.kinds.get(kind).ok_or_else(|| {
            WorkError::Fail(JobError::new(ErrorCode::UnknownKind, format!("this process has no kind {kind}")))
        })
    }

    /// An attempt of this kind that ended unknown may be repeated. `None` for a kind that isn't on the list.
    pub fn repeatable(&self, kind: &str) -> Option<bool> {
        match self.statements_of(kind) {
            None => self.kinds.get(kind).map(|entry| entry.repeatable),
            Some(_) => Some(true),
        }
    }

    /// Nothing that the kind does outlives a lost lease.
    pub fn fenced(&self, kind: &str) -> bool {
        self.statements_of(kind).is_some() || self.kinds.get(kind).is_some_and(|entry| entry.fenced)
    }

    /// The job can be paused, and goes on from where it was.
    pub fn resumable(&self, kind: &str, args: &RawValue) -> bool {
        self.entry(kind, args).is_some_and(|entry| entry.resumable)
    }

    /// The names of the kinds whose jobs can be paused, whatever their arguments.
    pub fn resumable_kinds(&self) -> Vec<&'static str> {
        self.kinds.iter().filter(|(_, entry)| entry.resumable).map(|(name, _)| *name).collect()
    }

    /// The longest that an attempt may take, in milliseconds, where the work has a limit of its own.
    pub fn longest_ms(&self, kind: &str, args: &RawValue) -> Option<i64> {
        self.statement(kind, args).map(|statement| statement.timeout_ms)
    }

    /// Checks arguments before they become a row.
    ///
    /// # Errors
    /// Each argument that is refused.
    pub fn check(&self, kind: &str, args: &RawValue) -> Result<(), CheckError> {
        self.check_and_find_upload(kind, args).map(drop)
    }

    /// As [`Registry::check`], and gives the upload that a job with these arguments reads.
    ///
    /// # Errors
    /// Each argument that is refused.
    pub fn check_and_find_upload(&self, kind: &str, args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
        self.check_as(&self.named(kind, args), kind, args)
    }

    /// As [`Registry::check_and_find_upload`], of a job whose saved statement was looked up before.
    ///
    /// # Errors
    /// Each argument that is refused.
    pub fn check_as(&self, named: &Named, kind: &str, args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
        let unknown = || CheckError { errors: vec![ArgError::new("", "there is no such kind")] };
        match named {
            Named::Unknown(_, refused) => Err(refused.clone()),
            Named::Statement(statement) => {
                let resolved = statement::Resolved::of(Arc::clone(statement), args)?;
                let entry = self.kinds.get(statement.kind.as_str()).ok_or_else(unknown)?;
                (entry.check)(&resolved.args).map_err(|refused| resolved.translated(refused))
            }
            Named::Other if self.statements_of(kind).is_some() => Err(statement::unreadable(args)),
            Named::Other => (self.kinds.get(kind).ok_or_else(unknown)?.check)(args),
        }
    }

    /// A job of a kind and with arguments that come from elsewhere, both checked, with every default, and with
    /// a hold on the upload that it reads.
    ///
    /// ```
    /// use slowlane::Registry;
    ///
    /// let kinds = Registry::standard();
    /// let job = kinds.job("query", &serde_json::json!({"sql": "SELECT 1"}))?;
    /// assert_eq!(job.kind, "query");
    /// let refused = kinds.job("query", &serde_json::json!({"sql": ""})).unwrap_err();
    /// assert_eq!(refused.errors[0].pointer, "/sql");
    /// # Ok::<(), slowlane::kinds::CheckError>(())
    /// ```
    ///
    /// # Errors
    /// That there is no such kind, or each argument that is refused.
    pub fn job<A: Serialize + ?Sized>(&self, kind: &str, args: &A) -> Result<NewJob, CheckError> {
        let args = RawJson::of(args).map_err(no_json)?;
        let upload = self.check_and_find_upload(kind, &args.0)?;
        let statement = self.statement(kind, &args.0);
        let job = NewJob { upload: upload.map(|upload| upload.id), ..NewJob::new(kind, args) };
        Ok(match statement {
            None => job,
            Some(statement) => NewJob {
                target: statement.target.clone(),
                queue: statement.queue.clone(),
                timeout_ms: statement.timeout_ms,
                ..job
            },
        })
    }

    /// The upload that a job with these arguments reads.
    pub fn upload(&self, kind: &str, args: &RawValue) -> Option<UploadArg> {
        self.check_and_find_upload(kind, args).ok().flatten()
    }

    /// Runs an attempt.
    ///
    /// # Errors
    /// What the kind says, or that its arguments can't be read by this version.
    pub fn run(&self, kind: &str, args: &RawValue, ctx: &mut WorkContext<'_>) -> Result<RawJson, WorkError> {
        // What is to be validated is looked at by itself.
        if ctx.is_statements_only() && kind != VALIDATE && !ON_STATEMENTS_ONLY.contains(&kind) {
            return Err(statements_only(ctx));
        }
        let Some(statements) = self.statements_of(kind) else {
            return (self.known(kind)?.run)(args, ctx);
        };
        let resolved = statement::begin(statements, args, ctx)?;
        let run = self.known(resolved.statement.kind.as_str())?.run;
        run(&resolved.args, ctx).map_err(|error| resolved.as_its_caller_knows_it(error))
    }
}

/// A job that came in by SQL, or before the target was declared so.
pub(super) fn statements_only(ctx: &WorkContext<'_>) -> WorkError {
    let message = format!("the target {} runs saved statements only", ctx.target_name());
    let error = JobError::new(ErrorCode::StatementsOnly, message);
    WorkError::Fail(error.with_hint("submit a job of the kind statement; GET /v1/statements lists them"))
}

pub(super) fn parse<W: DeserializeOwned>(args: &RawValue) -> Result<W, ArgError> {
    let mut reader = serde_json::Deserializer::from_str(args.get());
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer = pointer_of(error.path());
        // The position that serde_json adds is one within the arguments and would mislead.
        let text = error.into_inner().to_string();
        let detail = text.split(" at line ").next().unwrap_or(&text).to_owned();
        ArgError { pointer, detail }
    })
}

fn pointer_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(step(key)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

pub(super) fn check<W: Work>(args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
    let work = parse::<W>(args).map_err(|error| CheckError { errors: vec![error] })?;
    work.check().map_err(|errors| CheckError { errors })?;
    Ok(work.upload())
}

fn unreadable(error: ArgError) -> WorkError {
    WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, format!("{}: {}", error.pointer, error.detail)))
}

fn validate<W: Work>(args: &RawValue, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
    read::<W>(args)?.validate(ctx)
}

/// The work, checked once more: a job that came in by SQL, or was written by another version, has been checked by
/// nobody.
pub(super) fn read<W: Work>(args: &RawValue) -> Result<W, WorkError> {
    let work = parse::<W>(args).map_err(unreadable)?;
    work.check().map_err(|errors| WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, listed(&errors))))?;
    Ok(work)
}

fn run<W: Work>(args: &RawValue, ctx: &mut WorkContext<'_>) -> Result<RawJson, WorkError> {
    let work = read::<W>(args)?;
    let output = work.run(ctx)?;
    RawJson::of(&output).map_err(|error| {
        WorkError::Fail(JobError::new(ErrorCode::InvalidOutput, format!("the output has no JSON form: {error}")))
    })
}
