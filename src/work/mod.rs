//! What a kind of work is made of: the trait that it implements, its errors, the list of the kinds that a process knows, and
//! what an attempt can use.
//!
//! Knows no kind but `statement` and `validate`, which run and look at others; no HTTP, and no thread of the worker.

mod arguments;
pub mod context;
pub mod control;
mod error;
pub mod exactly_once;
pub mod loan;
pub mod progress;
mod registry;
mod sqlstates;
pub mod statement;
pub mod validation;

use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use arguments::{ArgError, CheckError, UploadArg, UploadTypes};
use arguments::{listed, no_json};
pub use context::{Said, Services, WorkContext};
pub use control::{JobControl, StopReason};
pub use error::{QUERY_CANCELED, WorkError};
pub use registry::{Registry, Resolution};
pub(crate) use registry::{States, read};
pub use statement::STATEMENT;
pub use validation::Validation;

use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{JobSpec, RawJson};

/// A kind of work: its arguments are the type itself. docs/rust.md goes through one from start to end.
///
/// Give it to a server by [`ServerBuilder::kind`](crate::app::ServerBuilder::kind), or to a [`Registry`]. The type is
/// read from a job's `args` and checked twice: when it is accepted, so that a mistake is a 422 with the field's
/// pointer, and before it runs.
/// `#[serde(deny_unknown_fields)]` makes a misspelt argument one.
///
/// ```
/// use slowlane::work::{Work, WorkContext, WorkError};
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
/// # Ok::<(), slowlane::work::CheckError>(())
/// ```
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// The kind's name in requests and rows.
    const KIND: &'static str;
    /// An attempt that ended unknown may be repeated: its effects are none, the same ones again, or committed by
    /// [`WorkContext::exactly_once`] alone. An attempt that returns [`WorkError::Retry`] is repeated whatever this
    /// says, and so is one whose first session can't be had: have a session before anything takes effect elsewhere,
    /// and return `Fail` after it.
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

    /// A job that runs this work, with every default, for [`queue::insert()`](crate::queue::insert()). Other values
    /// than the defaults are given by fields: `JobSpec { priority: 2, ..work.job()? }`.
    ///
    /// # Errors
    /// Each argument that can't be accepted.
    fn job(&self) -> Result<JobSpec, CheckError> {
        self.check().map_err(|errors| CheckError { errors })?;
        let args = RawJson::of(self).map_err(no_json)?;
        Ok(JobSpec { upload: self.upload().map(|upload| upload.id), ..JobSpec::new(Self::KIND, args) })
    }

    /// The upload that it reads, and which argument names it: a job is accepted only while the upload is there, and only
    /// if it is what the work reads. It then stays until the job has ended. Defaults to none.
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

    /// Sees to what a job has left on its target that has ended without doing so itself: its worker died and there is
    /// no other attempt, or what was in the way is gone by now. `kept` is its last checkpoint, if that was written by
    /// [`WorkContext::save_what_may_be_left`]. Called again every 30 s for a week, until all is done. Others may be
    /// at work by now: what isn't certainly the job's own has to stay. Has to be done by `until`.
    ///
    /// # Errors
    /// When it couldn't be looked at; it is tried again.
    fn clean_up_after(_kept: &RawJson, _session: &mut Session, _until: Instant) -> Result<CleanedUp, WorkError> {
        Ok(CleanedUp { all: true, told: Vec::new() })
    }

    /// Does the work, on a thread of its own that may wait.
    ///
    /// # Errors
    /// [`WorkError`] decides what becomes of the job.
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Self::Output, WorkError>;
}

/// What [`Work::clean_up_after`] did.
#[derive(Clone, Debug, Default)]
pub struct CleanedUp {
    /// Nothing more is to be done.
    pub all: bool,
    /// What the job's log says of it.
    pub told: Vec<(LogLevel, String)>,
}

/// The kind that looks at other jobs: [`mod@validation`].
pub const VALIDATE: &str = "validate";

/// The kind that looks at a target.
pub const CHECK: &str = "check";

/// The kinds whose jobs a target for statements takes: what their callers send holds no SQL.
pub const ON_STATEMENTS_ONLY: [&str; 2] = [STATEMENT, CHECK];
