//! Kinds of work: the trait that one implements, the list of them, and what an attempt can use.
//!
//! A new kind touches its own file and one line of the list. Knows the queue's types, results and targets; knows no
//! HTTP and no thread of the worker.

pub mod backfill;
pub mod carrier_report;
pub mod check;
pub mod context;
pub mod control;
pub mod exactly_once;
pub mod execute;
pub mod import;
pub mod loan;
pub mod maintain;
pub mod params;
mod prepared;
pub mod query;
pub mod refresh;
mod sql;
pub mod statement;
pub mod validate;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

pub use context::{Said, Services, WorkContext};
pub use control::{JobControl, StopReason};
pub use statement::STATEMENT;
pub use validate::Validation;

use crate::db::DbError;
use crate::pq::{PqError, PqErrorKind};
use crate::queue::{ErrorCode, JobError, NewJob, RawJson};
use crate::results::ResultError;
use crate::statements::{Loaded, Statement, Statements, UnreadableFolder};
use crate::uploads;

/// A kind of work: its arguments are the type itself. docs/rust.md goes through one from start to end.
///
/// Give it to a server by [`ServerBuilder::kind`](crate::app::ServerBuilder::kind), or to a [`Registry`]. The type is read
/// from a job's `args` and checked twice: when it is accepted, so that a mistake is a 422 with the field's pointer, and before it
/// runs.
/// `#[serde(deny_unknown_fields)]` makes a misspelt argument one.
///
/// ```
/// use slowlane::kinds::{Work, WorkContext, WorkError};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Greet { name: String }
///
/// impl Work for Greet {
///     const KIND: &'static str = "greet";
///     const REPEATABLE: bool = true;
///     type Output = String;
///     fn run(&self, _ctx: &mut WorkContext<'_>) -> Result<String, WorkError> {
///         Ok(format!("hello {}", self.name))
///     }
/// }
///
/// let job = Greet { name: "you".to_owned() }.job()?;
/// assert_eq!((job.kind.as_str(), job.args.text()), ("greet", r#"{"name":"you"}"#));
/// # Ok::<(), slowlane::kinds::CheckError>(())
/// ```
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// The kind's name in requests and rows.
    const KIND: &'static str;
    /// An attempt that ended unknown may be repeated: its effects are none, the same ones again, or committed by
    /// [`WorkContext::exactly_once`] alone. An attempt that returns [`WorkError::Retry`] is repeated whatever this says, and so is one
    /// whose first session can't be had: have a session before anything takes effect elsewhere, and return `Fail` after it.
    const REPEATABLE: bool;
    /// Nothing that it does outlives a lost lease: it only reads, or what it writes is committed by
    /// [`WorkContext::exactly_once`]. It goes on while the queue can't be reached; work that isn't fenced is stopped
    /// then. Defaults to no.
    const FENCED: bool = false;
    /// It can be paused, and goes on from its checkpoint when it is resumed: what it did up to there isn't done again.
    /// Defaults to no.
    const RESUMABLE: bool = false;
    /// It keeps a result that can be fetched. Defaults to no.
    const PRODUCES_RESULT: bool = false;
    /// [`Work::validate`] asks the target. Defaults to no.
    const VALIDATES: bool = false;
    /// What the job shows as `output`.
    type Output: Serialize;

    /// What the types can't say about the arguments. Defaults to nothing.
    ///
    /// # Errors
    /// Each argument that can't be accepted, with what was expected.
    fn check(&self) -> Result<(), Vec<ArgError>> {
        Ok(())
    }

    /// A job that runs this work, with every default, for [`queue::insert()`](crate::queue::insert()). Other values than
    /// the defaults are given by fields: `NewJob { priority: 2, ..work.job()? }`.
    ///
    /// # Errors
    /// Each argument that can't be accepted.
    fn job(&self) -> Result<NewJob, CheckError> {
        self.check().map_err(|errors| CheckError { errors })?;
        let args = RawJson::of(self).map_err(no_json)?;
        Ok(NewJob { upload: self.upload().map(|upload| upload.id), ..NewJob::new(Self::KIND, args) })
    }

    /// The upload that it reads, and which argument names it: a job is accepted only while the upload is there, which
    /// then stays until the job has ended. Defaults to none.
    fn upload(&self) -> Option<UploadArg> {
        None
    }

    /// Looks at what the work would meet on its target, and changes nothing: for `POST /v1/jobs/validate`. Called where
    /// `VALIDATES` says so, with arguments that were checked.
    ///
    /// # Errors
    /// What says nothing about the job, such as a target that can't be reached. What stands in its way is among the
    /// [`Validation`]'s problems.
    fn validate(&self, _ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        Ok(Validation { valid: true, ..Validation::default() })
    }

    /// Does the work, on a thread of its own that may wait.
    ///
    /// # Errors
    /// [`WorkError`] decides what becomes of the job.
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Self::Output, WorkError>;
}

/// An argument that can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgError {
    /// A JSON pointer from the arguments, such as `/sql`.
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

impl ArgError {
    /// An error about the argument at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> ArgError {
        ArgError { pointer: pointer.into(), detail: detail.into() }
    }
}

/// An argument that names an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadArg {
    /// A JSON pointer from the arguments, such as `/upload`.
    pub pointer: &'static str,
    /// The upload.
    pub id: Uuid,
}

/// Arguments that a kind refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arguments were refused: {}", listed(.errors))]
pub struct CheckError {
    /// Each of them.
    pub errors: Vec<ArgError>,
}

fn listed(errors: &[ArgError]) -> String {
    errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; ")
}

fn no_json(error: serde_json::Error) -> CheckError {
    CheckError { errors: vec![ArgError::new("", format!("expected arguments that have a JSON form: {error}"))] }
}

/// How an attempt failed, and what that means for the job.
///
/// | | the job | an attempt is charged |
/// | --- | --- | --- |
/// | [`Retry`](WorkError::Retry) | is `scheduled` again, later each time; `failed` when none is left | yes |
/// | [`Fail`](WorkError::Fail) | is `failed` | yes |
/// | [`Cancelled`](WorkError::Cancelled) | is `cancelled`, `paused`, `failed` with code `timeout`, or handed back, as it was asked | if it ended |
/// | [`Snooze`](WorkError::Snooze) | is `scheduled` for then | no |
/// | [`Unavailable`](WorkError::Unavailable) | is `scheduled`, later each time up to a minute | no |
///
/// `?` makes the right one of Diesel's errors and of [`PqError`]: what may pass is tried again.
///
/// ```
/// use slowlane::{JobError, WorkError};
///
/// fn run() -> Result<(), WorkError> {
///     Err(diesel::result::Error::NotFound)?
/// }
/// assert!(matches!(run(), Err(WorkError::Fail(error)) if error.code == "sql_error"));
/// let later = WorkError::of(JobError::new("rates_missing", "today's rates aren't there yet").retryable());
/// assert!(matches!(later, WorkError::Retry(_)));
/// ```
#[derive(Clone, Debug)]
pub enum WorkError {
    /// Worth another attempt, if there is one left.
    Retry(JobError),
    /// Not worth another attempt.
    Fail(JobError),
    /// It stopped because it was asked to.
    Cancelled,
    /// It wants to run again later, uncharged.
    Snooze(Duration),
    /// Nothing has begun, because what it needs can't be reached: again later and later, uncharged.
    Unavailable(JobError),
}

impl WorkError {
    /// A failure, to be tried again or not as the error itself says.
    pub fn of(error: JobError) -> WorkError {
        let error = error.bounded();
        if error.retryable { WorkError::Retry(error) } else { WorkError::Fail(error) }
    }
}

/// The kind that looks at other jobs: [`mod@validate`].
pub const VALIDATE: &str = "validate";
/// The kind that looks at a target: [`mod@check`].
pub const CHECK: &str = "check";

/// SQLSTATE of a statement that was cancelled.
pub const QUERY_CANCELED: &str = "57014";

impl From<PqError> for WorkError {
    fn from(error: PqError) -> Self {
        let retryable = error.retryable() || error.sqlstate.as_deref() == Some(QUERY_CANCELED);
        let code = match (&error.kind, error.sqlstate.as_deref()) {
            (_, Some(QUERY_CANCELED)) => ErrorCode::CancelledByServer,
            (_, Some("25006")) => ErrorCode::ReadOnly,
            (_, Some("42501")) => ErrorCode::PermissionDenied,
            (_, Some("55P03")) => ErrorCode::LockTimeout,
            // A session or a transaction that was idle, or open, for longer than its role may.
            (_, Some("25P03" | "25P04")) => ErrorCode::ConnectionLost,
            // The server ended the session, or is about to end or to begin.
            (_, Some(state)) if state.starts_with("57P0") || state.starts_with("08") => ErrorCode::ConnectionLost,
            (PqErrorKind::Server | PqErrorKind::Usage, _) => ErrorCode::SqlError,
            _ => ErrorCode::ConnectionLost,
        };
        WorkError::of(JobError {
            code: code.into(),
            message: error.message,
            retryable,
            sqlstate: error.sqlstate,
            detail: error.detail,
            hint: error.hint,
            position: error.position,
        })
    }
}

impl From<diesel::result::Error> for WorkError {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind, Error};
        let (detail, hint, position) = match &error {
            Error::DatabaseError(_, info) => (
                info.details().map(str::to_owned),
                info.hint().map(str::to_owned),
                info.statement_position().and_then(|p| u32::try_from(p).ok()),
            ),
            _ => (None, None, None),
        };
        // Diesel passes no SQLSTATE on; what it tells apart is enough to know what is worth another try.
        let serialization = matches!(&error, Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _));
        let message = error.to_string();
        let cancelled = message.starts_with("canceling statement") && !message.contains("lock timeout");
        let (code, retryable) = match DbError::from(error) {
            DbError::Unavailable(_) => (ErrorCode::ConnectionLost, true),
            _ if cancelled => (ErrorCode::CancelledByServer, true),
            DbError::Busy(_) => (ErrorCode::LockTimeout, true),
            DbError::Query(_) => (ErrorCode::SqlError, serialization || message.contains("deadlock detected")),
        };
        let sqlstate = cancelled.then(|| QUERY_CANCELED.to_owned());
        let error = JobError { code: code.into(), message, retryable, sqlstate, detail, hint, position };
        WorkError::of(error)
    }
}

/// What the queue's connections fail with; a target's speak for themselves.
impl From<DbError> for WorkError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Query(error) => error.into(),
            DbError::Busy(_) | DbError::Unavailable(_) => {
                WorkError::Retry(JobError::new(ErrorCode::QueueUnavailable, error.to_string()).retryable())
            }
        }
    }
}

impl From<uploads::ReadError> for WorkError {
    fn from(error: uploads::ReadError) -> Self {
        match error {
            uploads::ReadError::Db(error) => error.into(),
            uploads::ReadError::Gone => WorkError::Fail(
                JobError::new(ErrorCode::UploadGone, "the upload isn't there any more, or a part of it")
                    .with_hint("upload it again, and submit another job"),
            ),
        }
    }
}

impl From<ResultError> for WorkError {
    fn from(error: ResultError) -> Self {
        match error {
            ResultError::Db(error) => error.into(),
            // Whatever this attempt says now is refused by its fence.
            ResultError::LeaseLost => WorkError::Cancelled,
            // What is expired or deleted meanwhile makes room.
            ResultError::StoreFull => WorkError::Retry(
                JobError::new(ErrorCode::ResultStoreFull, error.to_string())
                    .retryable()
                    .with_hint("delete results that are no longer needed, or give the queue's database more disk"),
            ),
            ResultError::TooLarge => WorkError::Fail(
                JobError::new(ErrorCode::ValueTooLarge, error.to_string()).with_hint("return less in one value"),
            ),
            ResultError::Damaged(_) => WorkError::Fail(JobError::new(ErrorCode::Internal, error.to_string())),
        }
    }
}

/// What the worker and the HTTP side know of a kind.
struct Entry {
    repeatable: bool,
    fenced: bool,
    resumable: bool,
    produces_result: bool,
    validates: bool,
    validate: fn(&RawValue, &WorkContext<'_>) -> Result<Validation, WorkError>,
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
            .with::<validate::Validate>()
            .with::<check::Check>()
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
        let validation = (self.known(resolved.statement.kind.as_str())?.validate)(&resolved.args, ctx)?;
        Ok(validation.at("/args/name"))
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
        if ctx.is_statements_only() && ![STATEMENT, VALIDATE, CHECK].contains(&kind) {
            return Err(statements_only(ctx));
        }
        let Some(statements) = self.statements_of(kind) else {
            return (self.known(kind)?.run)(args, ctx);
        };
        let resolved = statement::begin(statements, args, ctx)?;
        (self.known(resolved.statement.kind.as_str())?.run)(&resolved.args, ctx)
    }
}

/// A job that came in by SQL, or before the target was declared so.
fn statements_only(ctx: &WorkContext<'_>) -> WorkError {
    let message = format!("the target {} runs saved statements only", ctx.target_name());
    let error = JobError::new(ErrorCode::StatementsOnly, message);
    WorkError::Fail(error.with_hint("submit a job of the kind statement; GET /v1/statements lists them"))
}

fn parse<W: DeserializeOwned>(args: &RawValue) -> Result<W, ArgError> {
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
            Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn check<W: Work>(args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
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

/// The work, checked once more: a job that came in by SQL, or was written by another version, has been checked by nobody.
fn read<W: Work>(args: &RawValue) -> Result<W, WorkError> {
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
