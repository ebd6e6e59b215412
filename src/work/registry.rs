//! The list of kinds that a process knows, and the way from a job's kind and arguments to the code that checks and runs it.
//!
//! The one place that knows that a saved statement is run as the kind of its file. Knows no queue and no thread.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::pq::Session;
use crate::queue::{ErrorCode, JobError, JobSpec, RawJson};
use crate::statements::{InnerKind, Loaded, Statement, Statements, UnreadableFolder};
use crate::work::arguments::{invalid_args, parse};
use crate::work::context::WorkContext;
use crate::work::{
    ArgError, CheckError, CleanedUp, ON_STATEMENTS_ONLY, STATEMENT, UploadArg, VALIDATE, Validation, Work, WorkError,
    listed, no_json, statement, validation,
};

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
    /// The registry is for what looks at jobs of other kinds.
    run: fn(&Registry, &RawValue, &mut WorkContext<'_>) -> Result<RawJson, WorkError>,
}

impl Entry {
    fn of<W: Work>() -> Entry {
        Entry {
            repeatable: W::REPEATABLE,
            fenced: W::FENCED,
            resumable: W::RESUMABLE,
            produces_result: W::PRODUCES_RESULT,
            validates: W::VALIDATES,
            validate: validate::<W>,
            clean_up_after: W::clean_up_after,
            check: check::<W>,
            run: run::<W>,
        }
    }
}

/// What a job runs: looked up once for a request, and once for an attempt, so that all that is asked of it is answered by one
/// state of the saved statements.
#[derive(Clone)]
pub struct Resolution(Found);

#[derive(Clone)]
enum Found {
    /// A kind.
    Kind(Arc<Entry>),
    /// There is no such kind.
    NoKind(String),
    /// A saved statement, and the kind that its file names.
    Statement(Arc<Statement>, Arc<Entry>),
    /// There is no saved statement of this name; and what was expected.
    NoStatement(String, CheckError),
    /// The arguments name no saved statement.
    Unreadable(CheckError),
}

impl Resolution {
    fn entry(&self) -> Option<&Entry> {
        match &self.0 {
            Found::Kind(entry) | Found::Statement(_, entry) => Some(entry),
            Found::NoKind(_) | Found::NoStatement(..) | Found::Unreadable(_) => None,
        }
    }

    /// The saved statement that the job runs, where it runs one.
    pub fn statement(&self) -> Option<&Statement> {
        match &self.0 {
            Found::Statement(statement, _) => Some(statement),
            _ => None,
        }
    }

    /// The name of a saved statement that there isn't, and what was expected.
    pub fn missing_statement(&self) -> Option<(&str, &CheckError)> {
        match &self.0 {
            Found::NoStatement(name, refused) => Some((name, refused)),
            _ => None,
        }
    }

    /// The job keeps a result that can be fetched.
    pub fn produces_result(&self) -> bool {
        self.entry().is_some_and(|entry| entry.produces_result)
    }

    /// It can be said what the job would meet, without running it.
    pub fn validates(&self) -> bool {
        self.entry().is_some_and(|entry| entry.validates)
    }

    /// The job can be paused, and goes on from where it was.
    pub fn resumable(&self) -> bool {
        self.entry().is_some_and(|entry| entry.resumable)
    }

    /// The longest that an attempt may take, in milliseconds, where the work has a limit of its own.
    pub fn longest_ms(&self) -> Option<i64> {
        self.statement().map(|statement| statement.timeout_ms)
    }

    /// Checks arguments before they become a row, and gives the upload that a job with them reads.
    ///
    /// # Errors
    /// Each argument that is refused.
    pub fn check(&self, args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
        match &self.0 {
            Found::Kind(entry) => (entry.check)(args),
            Found::NoKind(_) => Err(CheckError { errors: vec![ArgError::new("", "there is no such kind")] }),
            Found::NoStatement(_, refused) | Found::Unreadable(refused) => Err(refused.clone()),
            Found::Statement(statement, entry) => {
                let resolved = statement::Resolved::of(Arc::clone(statement), args)?;
                (entry.check)(&resolved.args).map_err(|refused| resolved.translated(refused))
            }
        }
    }
}

/// What an embedder's kinds share: one value of each type.
pub(crate) type States = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// The list of kinds that a process knows: it accepts and claims jobs of these, and of no others.
///
/// ```
/// use slowlane::Registry;
/// use slowlane::kinds::query::Query;
///
/// assert_eq!(Registry::default().with::<Query>().names(), ["query"]);
/// ```
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<Entry>>,
    states: States,
    /// What the kind `statement` runs, where there is a folder of saved statements.
    statements: Option<Arc<Statements>>,
}

impl Registry {
    /// Adds a kind. One of the same name is replaced.
    pub fn with<W: Work>(mut self) -> Registry {
        self.kinds.insert(W::KIND, Arc::new(Entry::of::<W>()));
        self
    }

    /// Adds the kind `validate`, which looks at jobs of the other kinds.
    pub fn with_validation(mut self) -> Registry {
        let entry = Entry { run: run_validation, ..Entry::of::<validation::Validate>() };
        self.kinds.insert(VALIDATE, Arc::new(entry));
        self
    }

    /// Gives the kinds a value that they share, such as a pool or settings of their own: [`WorkContext::state`] lends it to each
    /// attempt. One value of each type; another one replaces it.
    ///
    /// ```
    /// use slowlane::{Registry, Work, WorkContext, WorkError};
    ///
    /// struct Rates { per_day: f64 }
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Bill { days: f64 }
    ///
    /// impl Work for Bill {
    ///     const KIND: &'static str = "bill";
    ///     const REPEATABLE: bool = true;
    ///     type Output = f64;
    ///     fn run(&self, ctx: &mut WorkContext<'_>) -> Result<f64, WorkError> {
    ///         Ok(ctx.state::<Rates>()?.per_day * self.days)
    ///     }
    /// }
    ///
    /// let kinds = slowlane::kinds::standard().with::<Bill>().state(Rates { per_day: 12.5 });
    /// assert!(kinds.contains("bill"));
    /// ```
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Registry {
        self.states.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    pub(crate) fn states(&self) -> &States {
        &self.states
    }

    /// Adds the kind `statement`: whatever the files of a folder let callers run. Files may name the kinds that were added before.
    ///
    /// # Errors
    /// When the folder can't be read at all. Files that can't be used are listed, and leave the others.
    pub fn with_statements(mut self, folder: &Path) -> Result<Registry, UnreadableFolder> {
        let kinds = self.kinds.clone();
        let check = move |kind: InnerKind, args: &RawValue| match kinds.get(kind.as_str()) {
            Some(entry) => (entry.check)(args).map(drop).map_err(statement::pairs),
            None => Err(vec![(String::new(), format!("this process has no kind {}", kind.as_str()))]),
        };
        self.statements = Some(Arc::new(Statements::open(folder, Box::new(check))?));
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

    fn statements_of(&self, kind: &str) -> Option<&Arc<Statements>> {
        self.statements.as_ref().filter(|_| kind == STATEMENT)
    }

    /// What a job of this kind and with these arguments runs, by the set of saved statements that is in effect now.
    pub fn resolve(&self, kind: &str, args: &RawValue) -> Resolution {
        Resolution(match self.statements_of(kind) {
            None => {
                self.kinds.get(kind).map_or_else(|| Found::NoKind(kind.to_owned()), |entry| Found::Kind(entry.clone()))
            }
            Some(statements) => match statement::named(statements, args) {
                Ok(statement) => match self.kinds.get(statement.kind.as_str()) {
                    Some(entry) => Found::Statement(statement, Arc::clone(entry)),
                    None => Found::NoKind(statement.kind.as_str().to_owned()),
                },
                Err(statement::Unresolved::Unknown(name, refused)) => Found::NoStatement(name, refused),
                Err(statement::Unresolved::Refused(refused)) => Found::Unreadable(refused),
            },
        })
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

    /// Looks at what work would meet on its target.
    ///
    /// # Errors
    /// As [`Work::validate`].
    fn validate(&self, kind: &str, args: &RawValue, ctx: &WorkContext<'_>) -> Result<Validation, WorkError> {
        let resolution = self.resolve(kind, args);
        if let Err(refused) = resolution.check(args) {
            return Ok(Validation::refused(refused));
        }
        match &resolution.0 {
            Found::Statement(statement, entry) => {
                let resolved = statement::Resolved::of(Arc::clone(statement), args).map_err(invalid_args)?;
                ctx.use_settings_of(statement);
                Ok(resolved.as_called((entry.validate)(&resolved.args, ctx)?))
            }
            Found::Kind(entry) => (entry.validate)(args, ctx),
            Found::NoKind(kind) => Err(unknown_kind(kind)),
            Found::NoStatement(_, refused) | Found::Unreadable(refused) => Err(invalid_args(refused.clone())),
        }
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
        self.kinds.get(kind).map(Arc::as_ref).ok_or_else(|| unknown_kind(kind))
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

    /// The names of the kinds whose jobs can be paused, whatever their arguments.
    pub fn resumable_kinds(&self) -> Vec<&'static str> {
        self.kinds.iter().filter(|(_, entry)| entry.resumable).map(|(name, _)| *name).collect()
    }

    /// Checks arguments before they become a row.
    ///
    /// # Errors
    /// Each argument that is refused.
    pub fn check(&self, kind: &str, args: &RawValue) -> Result<(), CheckError> {
        self.resolve(kind, args).check(args).map(drop)
    }

    /// A job of a kind and with arguments that come from elsewhere, both checked, with every default, and with
    /// a hold on the upload that it reads.
    ///
    /// ```
    /// use slowlane::Registry;
    ///
    /// let kinds = slowlane::kinds::standard();
    /// let job = kinds.job("query", &serde_json::json!({"sql": "SELECT 1"}))?;
    /// assert_eq!(job.kind, "query");
    /// let refused = kinds.job("query", &serde_json::json!({"sql": ""})).unwrap_err();
    /// assert_eq!(refused.errors[0].pointer, "/sql");
    /// # Ok::<(), slowlane::work::CheckError>(())
    /// ```
    ///
    /// # Errors
    /// That there is no such kind, or each argument that is refused.
    pub fn job<A: Serialize + ?Sized>(&self, kind: &str, args: &A) -> Result<JobSpec, CheckError> {
        let args = RawJson::of(args).map_err(no_json)?;
        let resolution = self.resolve(kind, &args.0);
        let upload = resolution.check(&args.0)?;
        let job = JobSpec { upload: upload.map(|upload| upload.id), ..JobSpec::new(kind, args) };
        Ok(match resolution.statement() {
            None => job,
            Some(statement) => JobSpec {
                target: statement.target.clone(),
                queue: statement.queue.clone(),
                timeout_ms: statement.timeout_ms,
                ..job
            },
        })
    }

    /// Runs an attempt of a job with what was looked up for it.
    ///
    /// # Errors
    /// What the kind says, or that its arguments can't be read by this version.
    pub fn run(
        &self,
        resolution: &Resolution,
        spec: &JobSpec,
        ctx: &mut WorkContext<'_>,
    ) -> Result<RawJson, WorkError> {
        let (kind, args) = (spec.kind.as_str(), &spec.args.0);
        // What is to be validated is looked at by itself.
        if ctx.is_statements_only() && kind != VALIDATE && !ON_STATEMENTS_ONLY.contains(&kind) {
            return Err(statements_only(ctx));
        }
        match &resolution.0 {
            Found::Kind(entry) => (entry.run)(self, args, ctx),
            Found::Statement(statement, entry) => {
                let resolved = statement::begin(Arc::clone(statement), args, ctx)?;
                let outcome = (entry.run)(self, &resolved.args, ctx);
                outcome.map_err(|error| resolved.as_its_caller_knows_it(error))
            }
            Found::NoKind(kind) => Err(unknown_kind(kind)),
            Found::NoStatement(name, _) => Err(statement::unknown_here(name)),
            Found::Unreadable(refused) => Err(invalid_args(refused.clone())),
        }
    }
}

fn unknown_kind(kind: &str) -> WorkError {
    WorkError::Fail(JobError::new(ErrorCode::UnknownKind, format!("this process has no kind {kind}")))
}

/// A job that came in by SQL, or before the target was declared so.
fn statements_only(ctx: &WorkContext<'_>) -> WorkError {
    let message = format!("the target {} runs saved statements only", ctx.target_name());
    let error = JobError::new(ErrorCode::StatementsOnly, message);
    WorkError::Fail(error.with_hint("submit a job of the kind statement; GET /v1/statements lists them"))
}

pub(crate) fn check<W: Work>(args: &RawValue) -> Result<Option<UploadArg>, CheckError> {
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
pub(crate) fn read<W: Work>(args: &RawValue) -> Result<W, WorkError> {
    let work = parse::<W>(args).map_err(unreadable)?;
    work.check().map_err(|errors| WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, listed(&errors))))?;
    Ok(work)
}

fn run<W: Work>(_: &Registry, args: &RawValue, ctx: &mut WorkContext<'_>) -> Result<RawJson, WorkError> {
    output_of(&read::<W>(args)?.run(ctx)?)
}

fn run_validation(registry: &Registry, args: &RawValue, ctx: &mut WorkContext<'_>) -> Result<RawJson, WorkError> {
    let looked_at = read::<validation::Validate>(args)?;
    if ctx.is_statements_only() && looked_at.kind != STATEMENT {
        return Err(statements_only(ctx));
    }
    match registry.validate(&looked_at.kind, &looked_at.args, ctx) {
        Err(WorkError::Fail(error)) if error.code == ErrorCode::UnknownTimeZone => {
            let mut validation = Validation::default();
            validation.stands_in_the_way(ctx.time_zone_pointer().to_owned(), WorkError::Fail(error))?;
            output_of(&validation)
        }
        outcome => output_of(&outcome?),
    }
}

fn output_of<T: Serialize>(output: &T) -> Result<RawJson, WorkError> {
    RawJson::of(output).map_err(|error| {
        WorkError::Fail(JobError::new(ErrorCode::InvalidOutput, format!("the output has no JSON form: {error}")))
    })
}
