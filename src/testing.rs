//! Jobs of kinds of your own, in your own tests: on a private Postgres, with the queue and the workers that production has.
//!
//! Knows no HTTP. docs/rust.md shows a test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use uuid::Uuid;

use crate::app::private::Logins;
use crate::app::{AppError, Running, Target, Workers};
use crate::cluster::{Cluster, ClusterError, ClusterOptions};
use crate::db::DbError;
use crate::db::pool::Manager;
use crate::queue::InsertError;
use crate::queue::fleet::workers::{self};
use crate::queue::intake::insert::{self, Inserted};
use crate::queue::intake::request::{Principal, Submission};
use crate::queue::intake::retry::{self, RetryOf};
use crate::queue::lifecycle::cancel;
use crate::queue::model::{Job, JobSpec, Lease};
use crate::queue::record::read;
use crate::work::{CheckError, Registry, Work};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a job.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Its target.
const TARGET: &str = "default";

/// Why a test can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TestingError {
    /// There is no private Postgres.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The workers can't run.
    #[error(transparent)]
    App(#[from] AppError),
    /// Roles or databases can't be made.
    #[error("the private Postgres can't be prepared: {0}")]
    Preparing(Box<dyn std::error::Error + Send + Sync>),
    /// The work refuses its own arguments.
    #[error(transparent)]
    Refused(#[from] CheckError),
    /// The job can't be put in.
    #[error(transparent)]
    Insert(#[from] InsertError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoJob(Uuid),
    /// It isn't in a state in which that can be done.
    #[error("the job {0} can't be {1}: it is {2}")]
    NotPossible(Uuid, &'static str, String),
    /// What was waited for didn't come about within a minute.
    #[error("a minute has passed: the job {0} is {1}")]
    TimedOut(Uuid, String),
}

/// A private Postgres with a queue and a target, and workers that run jobs of your kinds. All of it ends, and is removed, when this
/// is dropped.
///
/// The server's programs have to be installed; `SLOWLANE_POSTGRES_BIN` names their folder where they aren't found. Starting
/// takes a few seconds: tests of one kind can share one.
///
/// ```no_run
/// use slowlane::testing::Bench;
/// use slowlane::{Registry, Work, WorkContext, WorkError};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
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
/// let bench = Bench::start(Registry::default().with::<Greet>())?;
/// let job = bench.run(&Greet { name: "you".to_owned() })?;
/// assert_eq!(job.outcome.output.as_ref().map(|output| output.text()), Some("\"hello you\""));
/// # Ok::<(), slowlane::testing::TestingError>(())
/// ```
pub struct Bench {
    // In the order in which they have to end.
    running: Option<Running>,
    logins: Logins,
    cluster: Option<Cluster>,
    folder: PathBuf,
}

impl Bench {
    /// Starts Postgres and the workers.
    ///
    /// # Errors
    /// When no Postgres is installed, or it can't be used.
    pub fn start(kinds: Registry) -> Result<Bench, TestingError> {
        Bench::start_in(std::env::temp_dir().join(format!("slowlane-testing-{}", Uuid::new_v4())), kinds)
    }

    fn start_in(folder: PathBuf, kinds: Registry) -> Result<Bench, TestingError> {
        // Nothing of it has to outlive a crash of the machine.
        let settings = [("fsync", "off"), ("full_page_writes", "off")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let cluster = Cluster::start(ClusterOptions { data_dir: folder.clone(), settings });
        let cluster = cluster.inspect_err(|_| remove(&folder))?;
        let (logins, passwords) = Logins::of(&cluster).map_err(TestingError::Preparing)?;
        let mut bench = Bench { running: None, logins, cluster: Some(cluster), folder };
        bench.logins.set_up(&passwords).map_err(TestingError::Preparing)?;
        let workers = Workers::builder().queue(&bench.logins.queue).target(TARGET, Target::at(&bench.logins.work));
        bench.running = Some(workers.registry(kinds).workers(2).build()?.start()?);
        Ok(bench)
    }

    /// The folder of its Postgres, with the server's log; gone with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A connection to the target, as the role that jobs have.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn target(&self) -> Result<PgConnection, TestingError> {
        Ok(Manager::work(&self.logins.work, "SELECT 1").open()?)
    }

    /// Runs work as a job, and waits for its end, whichever that is.
    ///
    /// # Errors
    /// When the work refuses its arguments, or a minute has passed.
    pub fn run<W: Work>(&self, work: &W) -> Result<Job, TestingError> {
        self.ended(self.submit(work)?)
    }

    /// Puts work in as a job, and gives its id.
    ///
    /// # Errors
    /// When the work refuses its arguments.
    pub fn submit<W: Work>(&self, work: &W) -> Result<Uuid, TestingError> {
        self.submit_spec(&work.job()?)
    }

    /// As [`Bench::submit`], with other values than the defaults: `JobSpec { timeout_ms: 500, ..work.job()? }`.
    ///
    /// # Errors
    /// When a field has no valid value.
    pub fn submit_spec(&self, spec: &JobSpec) -> Result<Uuid, TestingError> {
        Ok(crate::queue::insert(&mut self.queue()?, spec)?)
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn job(&self, id: Uuid) -> Result<Job, TestingError> {
        read::job(&mut self.queue()?, id)?.ok_or(TestingError::NoJob(id))
    }

    /// Waits until a job is as it is wanted: it runs, it says so many rows, it has ended.
    ///
    /// # Errors
    /// When that isn't so within a minute.
    pub fn until(&self, id: Uuid, wanted: impl Fn(&Job) -> bool) -> Result<Job, TestingError> {
        let mut queue = self.queue()?;
        let since = Instant::now();
        loop {
            let job = read::job(&mut queue, id)?.ok_or(TestingError::NoJob(id))?;
            if wanted(&job) {
                return Ok(job);
            }
            if since.elapsed() >= PATIENCE {
                return Err(TestingError::TimedOut(id, job.status.state.to_string()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a job has ended, whichever end that is.
    ///
    /// # Errors
    /// When it hasn't within a minute.
    pub fn ended(&self, id: Uuid) -> Result<Job, TestingError> {
        self.until(id, |job| job.status.state.is_final())
    }

    /// Asks that a job end, as `POST /v1/jobs/{id}/cancel` does. Its statement is stopped on the server.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn cancel(&self, id: Uuid) -> Result<(), TestingError> {
        match cancel::request(&mut self.queue()?, id)? {
            cancel::CancelOutcome::NotFound => Err(TestingError::NoJob(id)),
            _ => Ok(()),
        }
    }

    /// Puts a job that failed or was cancelled in once more, and gives the new job's id.
    ///
    /// # Errors
    /// When the job waits, runs or has succeeded.
    pub fn retry(&self, id: Uuid) -> Result<Uuid, TestingError> {
        let mut queue = self.queue()?;
        let spec = match retry::of(&mut queue, id)? {
            RetryOf::Retry(spec) => *spec,
            RetryOf::NotFound => return Err(TestingError::NoJob(id)),
            RetryOf::NotRetryable(state) => {
                return Err(TestingError::NotPossible(id, "retried", state.to_string()));
            }
        };
        let again = Submission { retry_of: Some(id), ..Submission::new(Principal::default(), spec) };
        match insert::insert(&mut queue, &[&again])?.pop() {
            Some(Inserted::Created(job)) => Ok(job.id),
            _ => Err(TestingError::NotPossible(id, "retried", "retried already".to_owned())),
        }
    }

    /// Ends the attempt that runs a job as a `kill -9` of its process would, as far as databases can tell: its worker is struck
    /// off the list, so that nothing that the attempt still writes counts, and its sessions on the target are ended. What it
    /// had not committed is gone; another attempt takes the job within half a minute, or it ends as `outcome_unknown`, as its
    /// kind says. The code of the attempt runs on until it notices.
    ///
    /// # Errors
    /// When the job doesn't run.
    pub fn kill(&self, id: Uuid) -> Result<(), TestingError> {
        let mut queue = self.queue()?;
        let owner = owner_of(&mut queue, id)?;
        let Some(lease) = owner else {
            return Err(TestingError::NotPossible(id, "killed", self.job(id)?.status.state.to_string()));
        };
        // A beat in between is seen by the next try.
        loop {
            let beat = beat_of(&mut queue, lease.worker_id)?;
            if workers::bury(&mut queue, lease.worker_id, beat)? {
                break;
            }
        }
        let mut superuser = Manager::work(&self.logins.superuser, "SELECT 1").open()?;
        diesel::sql_query("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = $1")
            .bind::<Text, _>(lease.application_name())
            .execute(&mut superuser)
            .map_err(DbError::from)?;
        Ok(())
    }

    fn queue(&self) -> Result<PgConnection, TestingError> {
        Ok(Manager::queue(
            &self.logins.queue,
            &crate::db::pool::Purpose { name: "testing", statement_timeout: PATIENCE },
        )
        .open()?)
    }
}

#[derive(QueryableByName)]
struct Owner {
    #[diesel(sql_type = BigInt)]
    lease: i64,
    #[diesel(sql_type = Nullable<diesel::sql_types::Uuid>)]
    worker_id: Option<Uuid>,
}

fn owner_of(queue: &mut PgConnection, id: Uuid) -> Result<Option<Lease>, DbError> {
    let owner = diesel::sql_query("SELECT lease, worker_id FROM jobs WHERE id = $1 AND state = 'running'")
        .bind::<diesel::sql_types::Uuid, _>(id)
        .get_result::<Owner>(queue)
        .optional()?;
    Ok(owner.and_then(|owner| Some(Lease { job_id: id, number: owner.lease, worker_id: owner.worker_id? })))
}

fn beat_of(queue: &mut PgConnection, worker: Uuid) -> Result<Option<i64>, DbError> {
    use crate::db::schema::workers::dsl;
    Ok(dsl::workers.find(worker).select(dsl::beat).first(queue).optional()?)
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running = None;
        self.cluster = None;
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("{} is left: {error}", folder.display());
    }
}
