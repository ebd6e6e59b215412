//! What an attempt can use: sessions on its target, progress, the result store, and whether it is to stop.
//!
//! Sessions are noted on the job before they are told to do anything, and armed for as long as they are on loan: a
//! cancel, a deadline and a shutdown reach whatever the attempt is waiting for.

mod clean_up;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::pg::PgConnection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::db::DbError;
use crate::db::fate::{ServerLife, TransactionMark};
use crate::db::pool::Pool;
use crate::db::targets::{Target, TargetBackend};
use crate::kinds::control::{Interrupt, JobControl, StopReason};
use crate::kinds::loan::{ByBackend, ByCanceller, DieselWork, SessionWork};
use crate::kinds::{Registry, WorkError, exactly_once};
use crate::pq::{Notice, NoticeSink, PqErrorKind};
use crate::queue::checkpoint::{self, Outcome};
use crate::queue::claim::{self, ClaimedJob, Noted};
use crate::queue::job::JobStatistics;
use crate::queue::log::{LogBuffer, LogLevel, LogSource};
use crate::queue::progress::{Progress, Report};
use crate::queue::{JobError, Lease, RawJson};
use crate::results::{Column, Limits, Manifest, ResultWriter};
use crate::uploads::{self, Upload};

/// Between two tries to reach the queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(250);

/// What a process gives to every attempt.
#[derive(Clone)]
pub struct Services {
    /// Connections to the queue, for noting sessions.
    pub control: Pool,
    /// Connections to the queue, for parts of results.
    pub results: Pool,
    /// The kinds that the process knows.
    pub registry: Arc<Registry>,
}

/// What an attempt says of itself, read by the threads that store it.
#[derive(Debug, Default)]
pub struct Said {
    progress: Mutex<Progress>,
    log: Mutex<LogBuffer>,
    /// Transactions that were recorded, or may have been.
    recorded: AtomicI32,
}

impl Said {
    /// How far it is.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction of it was recorded, or may have been: what became of that comes before any other end.
    pub fn may_have_committed(&self) -> bool {
        self.recorded.load(Ordering::SeqCst) > 0
    }

    /// What it has to say.
    pub fn log(&self) -> MutexGuard<'_, LogBuffer> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of an attempt when its work has returned.
pub struct LeftBehind {
    /// Rows and bytes.
    pub statistics: JobStatistics,
    /// The result that becomes visible when the job succeeds.
    pub manifest: Option<Manifest>,
    /// The work knows that nothing of it took effect.
    pub no_effect: bool,
    /// The work knows that something of it may have taken effect that nothing will tell.
    pub not_to_be_repeated: bool,
    /// How far its transaction came.
    pub commit: CommitState,
}

/// How far the transaction that ends the job has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CommitState {
    /// None was recorded.
    #[default]
    None,
    /// This one was recorded, or may have been, and may have been committed.
    InDoubt(String),
    /// It was recorded, and the server said that it was rolled back.
    RolledBack(String),
    /// It is committed, and stays so.
    Committed(String),
}

/// One attempt, seen from inside: what [`Work::run`](crate::kinds::Work::run) is given.
///
/// Its sessions carry the job's id as their `application_name`, are limited to what is left of the attempt's time, and are
/// stopped on their servers by a cancel, the deadline and a shutdown. Each is the attempt's own until it is dropped.
///
/// ```
/// use diesel::prelude::*;
/// use slowlane::queue::log::LogLevel;
/// use slowlane::{WorkContext, WorkError};
///
/// fn refresh(ctx: &WorkContext<'_>, views: &[String]) -> Result<(), WorkError> {
///     let done: usize = ctx.checkpoint()?.unwrap_or(0);
///     let mut connection = ctx.diesel()?;
///     for (n, view) in views.iter().enumerate().skip(done) {
///         ctx.check()?;
///         let refreshed = diesel::sql_query("SELECT refresh($1)").bind::<diesel::sql_types::Text, _>(view);
///         refreshed.execute(&mut *connection)?;
///         ctx.log(LogLevel::Info, &format!("{view} is fresh, {:?} are left", ctx.remaining()));
///         ctx.save_checkpoint(&(n + 1))?;
///     }
///     Ok(())
/// }
/// ```
pub struct WorkContext<'a> {
    job: &'a ClaimedJob,
    control: Arc<JobControl>,
    target: Arc<Target>,
    services: &'a Services,
    said: Arc<Said>,
    statistics: RefCell<JobStatistics>,
    manifest: RefCell<Option<Manifest>>,
    no_effect: Cell<bool>,
    not_to_be_repeated: Cell<bool>,
    commit: RefCell<CommitState>,
    had_session: Cell<bool>,
}

impl<'a> WorkContext<'a> {
    /// The context of an attempt.
    pub fn new(
        job: &'a ClaimedJob,
        control: Arc<JobControl>,
        target: Arc<Target>,
        services: &'a Services,
        said: Arc<Said>,
    ) -> WorkContext<'a> {
        WorkContext {
            job,
            control,
            target,
            services,
            said,
            statistics: RefCell::default(),
            manifest: RefCell::default(),
            no_effect: Cell::new(false),
            not_to_be_repeated: Cell::new(false),
            commit: RefCell::default(),
            had_session: Cell::new(false),
        }
    }

    /// The kinds that this process knows.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.services.registry)
    }

    /// The attempt's lease.
    pub fn lease(&self) -> Lease {
        self.job.lease
    }

    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> i32 {
        self.job.attempt
    }

    /// What is left until the attempt times out.
    pub fn remaining(&self) -> Duration {
        self.control.remaining()
    }

    /// Ends the attempt when it is to end. Call it between statements and in long loops.
    ///
    /// # Errors
    /// [`WorkError::Cancelled`] when the attempt is to end, for whatever reason.
    pub fn check(&self) -> Result<(), WorkError> {
        match self.control.stop_reason() {
            None if self.remaining().is_zero() => {
                self.control.stop(StopReason::Deadline);
                Err(WorkError::Cancelled)
            }
            None => Ok(()),
            Some(_) => Err(WorkError::Cancelled),
        }
    }

    /// Says how far the attempt is. Written about once a second; the last report wins, and its numbers go before what the
    /// target's server counts.
    pub fn progress(&self, report: Report) {
        self.said.progress().report(report, false);
    }

    /// As [`WorkContext::progress`], for numbers that are coarser than what the server may count: while it counts something,
    /// that is shown, under this phase.
    pub fn coarse_progress(&self, report: Report) {
        self.said.progress().report(report, true);
    }

    /// Says what the attempt is doing, without numbers of its own: the server's are shown, where it has any.
    pub fn phase(&self, phase: &str) {
        self.said.progress().report(Report::phase(phase), true);
    }

    /// Waits for so long, or until the attempt is to end.
    ///
    /// # Errors
    /// As [`WorkContext::check`].
    pub fn wait(&self, pause: Duration) -> Result<(), WorkError> {
        self.control.may_wait(pause);
        self.check()
    }

    /// Says something that the job's log keeps. Stored within a second; after 1,000 lines they are only counted.
    pub fn log(&self, level: LogLevel, message: &str) {
        self.said.log().say(level, LogSource::Work, None, message);
    }

    /// The attempt is to end, for whatever reason.
    pub fn is_stopping(&self) -> bool {
        self.control.stop_reason().is_some()
    }

    /// Says that nothing of this attempt has taken effect, and that nothing will: all of it was rolled back. Then even
    /// work that may not be repeated can be run again after a shutdown. Call it only on the server's own word.
    pub fn nothing_took_effect(&self) {
        self.no_effect.set(true);
    }

    /// Says that something of this attempt may have taken effect, and that nobody could find out: even a kind that may be
    /// repeated isn't then, and ends with the error that it returns.
    pub fn not_to_be_repeated(&self) {
        self.not_to_be_repeated.set(true);
    }

    /// As [`WorkContext::log`], of something that the server refused.
    pub(super) fn log_refused(&self, sqlstate: &str, message: &str) {
        self.said.log().say(LogLevel::Warning, LogSource::Work, Some(sqlstate.to_owned()), message);
    }

    /// An upload that is ready.
    ///
    /// # Errors
    /// When it isn't there, or the attempt is to end before the queue can be asked.
    pub fn upload(&self, id: Uuid) -> Result<Upload, WorkError> {
        let found = self.ask_the_queue(|connection| uploads::store::upload(connection, id))?;
        found.ok_or_else(|| uploads::ReadError::Gone.into())
    }

    /// The bytes of an upload, from the first one.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn read_upload(&self, upload: &Upload) -> Result<uploads::Reader, WorkError> {
        let control = Arc::clone(&self.control);
        let try_again = move || control.may_wait(QUEUE_PAUSE);
        Ok(uploads::Reader::start(self.services.results.clone(), upload, try_again)?)
    }

    /// Counts rows and bytes for the job's `statistics`.
    pub fn count(&self, change: impl FnOnce(&mut JobStatistics)) {
        change(&mut self.statistics.borrow_mut());
    }

    /// A Diesel connection on the target, until it is dropped.
    ///
    /// # Errors
    /// When none can be had, the attempt is to end, or its lease is lost.
    pub fn diesel(&self) -> Result<DieselWork<'_>, WorkError> {
        self.check()?;
        let name = self.lease().application_name();
        let (loan, backend) = self.target.diesel(&name, self.remaining()).map_err(|error| match error {
            DbError::Unavailable(_) | DbError::Busy(_) => self.target_unavailable(&error),
            DbError::Query(error) => error.into(),
        })?;
        self.note(&backend)?;
        let by_backend = ByBackend::new(&self.target, &backend, name);
        let handle = self.arm(backend, Box::new(by_backend))?;
        Ok(DieselWork { loan, control: &self.control, handle })
    }

    /// A libpq session on the target, until it is dropped.
    ///
    /// # Errors
    /// As [`WorkContext::diesel`].
    pub fn session(&self) -> Result<SessionWork<'_>, WorkError> {
        self.check()?;
        let name = self.lease().application_name();
        let (mut loan, backend) = self.target.session(&name, self.remaining()).map_err(|error| match error.kind {
            PqErrorKind::Connect | PqErrorKind::ConnectionLost => self.target_unavailable(&error),
            _ => error.into(),
        })?;
        self.note(&backend)?;
        let canceller = loan.inner.canceller()?;
        let own = loan.inner.canceller()?;
        let by_backend = ByBackend::new(&self.target, &backend, name);
        let handle = self.arm(backend, Box::new(ByCanceller { canceller, by_backend }))?;
        loan.inner.on_notice(Some(self.notice_sink()));
        Ok(SessionWork { loan, control: &self.control, handle, own })
    }

    /// Without an earlier session nothing has begun: whatever the kind, it may wait for its target.
    fn target_unavailable(&self, error: &dyn std::fmt::Display) -> WorkError {
        let error = JobError::new("target_unavailable", error.to_string()).retryable();
        if self.had_session.get() {
            return WorkError::Retry(error);
        }
        self.nothing_took_effect();
        WorkError::Unavailable(error)
    }

    fn notice_sink(&self) -> NoticeSink {
        let said = Arc::clone(&self.said);
        Box::new(move |notice| say_notice(&said, notice))
    }

    /// Asks something of the queue. Its troubles are not the job's: it waits for them to pass, for as long as the attempt
    /// may run.
    fn ask_the_queue<T>(&self, ask: impl Fn(&mut PgConnection) -> Result<T, DbError>) -> Result<T, WorkError> {
        loop {
            let connection = self.services.control.get().map_err(|_| DbError::Unavailable("no connection".to_owned()));
            match connection.and_then(|mut connection| ask(&mut connection)) {
                Err(error)
                    if (error.passes() || matches!(error, DbError::Unavailable(_) | DbError::Busy(_)))
                        && self.control.may_wait(QUEUE_PAUSE) => {}
                Err(_) if self.control.stop_reason().is_some() => return Err(WorkError::Cancelled),
                outcome => return outcome.map_err(WorkError::from),
            }
        }
    }

    /// What was written under a lease that isn't ours any more was written by nobody.
    fn held(&self, written: bool) -> Result<(), WorkError> {
        if written {
            return Ok(());
        }
        self.control.stop(StopReason::LeaseLost);
        Err(WorkError::Cancelled)
    }

    /// Keeps where the work is, under the lease: the next attempt finds it, whatever becomes of this one. Durable when
    /// this returns; one such write costs a commit of the queue.
    ///
    /// # Errors
    /// When the attempt is to end, or its lease is lost.
    pub fn save_checkpoint<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<(), WorkError> {
        self.check()?;
        let cursor = RawJson::of(cursor).map_err(|error| {
            WorkError::Fail(JobError::new("invalid_checkpoint", format!("the checkpoint has no JSON form: {error}")))
        })?;
        let written = self.ask_the_queue(|connection| checkpoint::save(connection, &self.job.lease, &cursor))?;
        self.held(written)
    }

    /// What an earlier attempt kept last; `None` when there is nothing.
    ///
    /// # Errors
    /// When it isn't of this type, or the attempt is to end.
    pub fn checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, WorkError> {
        let saved = self.ask_the_queue(|connection| checkpoint::saved(connection, self.job.lease.job_id))?;
        let read = |saved: RawJson| {
            serde_json::from_str(saved.text()).map_err(|error| {
                let error = JobError::new("invalid_checkpoint", format!("the checkpoint can't be read: {error}"));
                WorkError::Fail(error.with_hint("an older version may have written it: submit the work as a new job"))
            })
        };
        saved.map(read).transpose()
    }

    /// Does the last of the work, in one transaction on a Diesel connection, so that its effects and the job's end are
    /// one: whatever dies, they are there once when the job has succeeded, and not at all otherwise. What `work` returns
    /// is the job's output, should this process not live to say so. Work that changes nothing else may be `REPEATABLE`
    /// and `FENCED`. To be called once, as the last thing. Costs two commits of the queue's and the target's besides its own.
    ///
    /// # Errors
    /// What `work` returns, after a rollback; otherwise as for any statement.
    pub fn exactly_once<T: Serialize>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
    ) -> Result<T, WorkError> {
        let mut connection = self.diesel()?;
        exactly_once::transaction(self, &mut connection, work)
    }

    /// What ends the job is committed once. What is committed after it, or while it is in doubt, would have no record.
    pub(super) fn may_commit(&self) -> Result<(), WorkError> {
        match &*self.commit.borrow() {
            CommitState::None | CommitState::RolledBack(_) => Ok(()),
            CommitState::InDoubt(_) | CommitState::Committed(_) => {
                let error =
                    JobError::new("committed_twice", "the work has sent the COMMIT of its last transaction already");
                Err(WorkError::Fail(error.with_hint("do all of it in one call of exactly_once")))
            }
        }
    }

    /// How far the transaction has come since it was recorded.
    pub(super) fn commit_is(&self, state: impl FnOnce(String) -> CommitState) {
        let mut commit = self.commit.borrow_mut();
        if let CommitState::InDoubt(xid) = &*commit {
            let xid = xid.clone();
            *commit = state(xid);
        }
    }

    /// A commit that was answered may have to be flushed once more: its wait for a standby may have been cut short.
    pub(super) fn settle_commit(&self, server: &ServerLife) -> Result<(), WorkError> {
        if self.is_stopping() || self.target.is_synchronous() {
            self.flush(server)?;
        }
        self.commit_is(CommitState::Committed);
        Ok(())
    }

    /// Makes what was written on this server so far safe. A standby that is away is waited for, for as long as the attempt
    /// may run.
    pub(super) fn flush(&self, server: &ServerLife) -> Result<(), WorkError> {
        loop {
            match self.target.flush(server) {
                Err(_) if self.control.may_wait(QUEUE_PAUSE) => {}
                Err(_) if self.control.stop_reason().is_some() => return Err(WorkError::Cancelled),
                outcome => {
                    return outcome.map_err(|error| {
                        WorkError::Retry(JobError::new("target_unavailable", error.to_string()).retryable())
                    });
                }
            }
        }
    }

    /// Records the transaction that is about to be committed, and what the job comes to with it.
    pub(super) fn record(&self, mark: &TransactionMark, output: RawJson) -> Result<(), WorkError> {
        let result = self.manifest.borrow().as_ref().map(Manifest::finished).transpose();
        let result = result.map_err(|error| WorkError::Fail(JobError::new("internal", error.to_string())))?;
        let outcome = Outcome { output, statistics: *self.statistics.borrow(), result };
        // Before it is sent: an answer that is lost leaves it recorded.
        let seq = self.said.recorded.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        *self.commit.borrow_mut() = CommitState::InDoubt(mark.xid.clone());
        let written =
            self.ask_the_queue(|connection| checkpoint::record(connection, &self.job.lease, seq, mark, &outcome))?;
        self.held(written)
    }

    fn noted(&self, backend: &TargetBackend) -> Result<Noted, WorkError> {
        let lease = &self.job.lease;
        self.ask_the_queue(|connection| claim::note_backend(connection, lease, backend.pid, backend.backend_start))
    }

    fn note(&self, backend: &TargetBackend) -> Result<(), WorkError> {
        match self.noted(backend)? {
            Noted::Held => Ok(()),
            Noted::CancelRequested => {
                self.control.stop(StopReason::Cancel);
                Err(WorkError::Cancelled)
            }
            Noted::LeaseLost => {
                self.control.stop(StopReason::LeaseLost);
                Err(WorkError::Cancelled)
            }
        }
    }

    fn arm(&self, backend: TargetBackend, interrupt: Box<dyn Interrupt>) -> Result<u64, WorkError> {
        self.had_session.set(true);
        self.control.arm(backend, interrupt).map_err(|_| WorkError::Cancelled)
    }

    /// Where rows go that the job shows as its result.
    pub fn result_writer(&self, columns: Vec<Column>, limits: Limits) -> ResultWriter {
        let control = Arc::clone(&self.control);
        let try_again = move || control.may_wait(QUEUE_PAUSE);
        ResultWriter::new(self.services.results.clone(), self.job.lease, columns, limits, try_again)
    }

    /// The result that becomes visible when the job succeeds.
    pub fn keep_result(&self, manifest: Manifest) {
        *self.manifest.borrow_mut() = Some(manifest);
    }

    /// What the attempt leaves behind, for its end.
    pub fn leave(self) -> LeftBehind {
        LeftBehind {
            statistics: self.statistics.into_inner(),
            manifest: self.manifest.into_inner(),
            no_effect: self.no_effect.get(),
            not_to_be_repeated: self.not_to_be_repeated.get(),
            commit: self.commit.into_inner(),
        }
    }
}

fn say_notice(said: &Said, notice: Notice) {
    let level = match notice.severity.as_str() {
        severity if severity.starts_with("DEBUG") => LogLevel::Debug,
        "NOTICE" => LogLevel::Notice,
        "WARNING" => LogLevel::Warning,
        _ => LogLevel::Info,
    };
    said.log().say(level, LogSource::Server, Some(notice.sqlstate), &notice.message);
}
