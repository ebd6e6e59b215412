//! What an attempt can use: sessions on its target, progress, the result store, and whether it is to stop.
//!
//! Sessions are noted on the job before they are told to do anything, and armed for as long as they are on loan: a
//! cancel, a deadline and a shutdown reach whatever the attempt is waiting for.

mod clean_up;
mod commits;
mod left_behind;
mod limits;
mod said;
mod waits;
mod warnings;

use std::any::TypeId;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use diesel::pg::PgConnection;
use uuid::Uuid;

use crate::db::pool::Pool;
use crate::db::{DbError, RetryingPool};
use crate::pq::{NoticeSink, PqErrorKind};
use crate::queue::lifecycle::claim::{self, ClaimedJob, Noted};
use crate::queue::lifecycle::end::FinishedResult;
use crate::queue::model::JobStatistics;
use crate::queue::record::log::{LogLevel, LogSource};
use crate::queue::{ErrorCode, JobError, Lease};
use crate::results::{Column, Limits, ResultWriter};
use crate::statements::Statement;
use crate::target::{SessionAsks, Target, TargetBackend};
use crate::uploads::{self, Upload};
use crate::work::control::{Interrupt, JobControl, StopReason};
use crate::work::loan::{ByBackend, ByCanceller, DieselWork, SessionWork};
use crate::work::progress::Report;
use crate::work::{States, WorkError};

pub use left_behind::{CommitState, Effects, LeftBehind};
pub use limits::unknown_time_zone;
pub use said::Said;
pub use waits::{Looks, Waits};
pub use warnings::Warning;
pub(crate) use warnings::{HEAR_WARNINGS_SQL, Unlogged, Warnings};

/// Between two tries to reach the queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(250);

/// What a process gives to every attempt.
#[derive(Clone)]
pub struct Services {
    /// Connections to the queue, for noting sessions.
    pub control: Pool,
    /// Connections to the queue, for parts of results.
    pub results: Pool,
    /// What kinds share.
    pub(crate) states: Arc<States>,
    /// Those who look at the sessions of attempts.
    pub looks: Arc<Looks>,
}

/// One attempt, seen from inside: what [`Work::run`](crate::work::Work::run) is given.
///
/// Its sessions carry the job's id as their `application_name`, are limited to what is left of the attempt's time, and are
/// stopped on their servers by a cancel, the deadline and a shutdown. Each is the attempt's own until it is dropped.
///
/// ```
/// use diesel::prelude::*;
/// use slowlane::queue::record::log::LogLevel;
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
    result: RefCell<Option<FinishedResult>>,
    result_of_failure: RefCell<Option<FinishedResult>>,
    effects: Cell<Effects>,
    commit: RefCell<CommitState>,
    /// A transaction was to be recorded, and no answer came.
    record_failed: Cell<bool>,
    /// What its saved statement asks of its sessions.
    of_statement: RefCell<SessionAsks>,
    had_session: Cell<bool>,
    on_standby: Cell<bool>,
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
            result: RefCell::default(),
            result_of_failure: RefCell::default(),
            effects: Cell::default(),
            commit: RefCell::default(),
            record_failed: Cell::new(false),
            of_statement: RefCell::default(),
            had_session: Cell::new(false),
            on_standby: Cell::new(false),
        }
    }

    /// What [`Registry::state`](crate::work::Registry::state) was given of this type.
    ///
    /// # Errors
    /// `internal` when it was given none: a mistake of the program that runs the work.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<&T, WorkError> {
        let value = self.services.states.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref());
        value.ok_or_else(|| {
            let name = std::any::type_name::<T>();
            let error = JobError::new(ErrorCode::Internal, format!("this process has no state of the type {name}"));
            WorkError::Fail(error.with_hint("give it to Registry::state before the server starts"))
        })
    }

    /// The name of the target that it runs on.
    pub fn target_name(&self) -> &str {
        &self.job.spec.target
    }

    /// The target that it runs on.
    pub(crate) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target)
    }

    /// The target runs saved statements only.
    pub(crate) fn is_statements_only(&self) -> bool {
        self.target.is_statements_only()
    }

    /// The version of the saved statement that an earlier attempt ran.
    pub(crate) fn statement_version(&self) -> Option<&str> {
        self.job.statement_version.as_deref()
    }

    /// Notes which version of a saved statement this attempt runs.
    pub(crate) fn note_statement(&self, statement: &Statement) -> Result<(), WorkError> {
        let lease = &self.job.lease;
        let (version, longest_ms) = (statement.version.as_str(), statement.timeout_ms);
        let noted = self.ask_the_queue(|connection| claim::note_statement(connection, lease, version, longest_ms))?;
        self.held(noted)
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
        self.had_effects(Effects::None);
    }

    /// Says that something of this attempt may have taken effect, and that nobody could find out: even a kind that may be
    /// repeated isn't then, and ends with the error that it returns.
    pub fn not_to_be_repeated(&self) {
        self.had_effects(Effects::NotRepeatable);
    }

    /// The kind is reached: what it does from now on may take effect.
    pub fn begin(&self) {
        self.had_effects(Effects::Possible);
    }

    /// What nobody can find out stays so, whatever the attempt does next.
    fn had_effects(&self, effects: Effects) {
        if self.effects.get() != Effects::NotRepeatable {
            self.effects.set(effects);
        }
    }

    /// As [`WorkContext::log`], of something that the server refused.
    pub(crate) fn log_refused(&self, sqlstate: &str, message: &str) {
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
        Ok(uploads::Reader::start(self.retrying(&self.services.results), upload)?)
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
        let lent = self.target.diesel(&name, self.remaining(), &self.asks());
        let (loan, backend) = lent.map_err(|error| match error {
            DbError::Unavailable(_) | DbError::Busy(_) => self.target_unavailable(&error),
            DbError::Query(error) => self.not_lent(None, &error.to_string()).unwrap_or_else(|| error.into()),
        })?;
        self.on_standby.set(self.on_standby.get() || loan.on_standby);
        self.limited(loan.limits);
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
        let lent = self.target.session(&name, self.remaining(), &self.asks());
        let (mut loan, backend) = lent.map_err(|error| match error.kind {
            PqErrorKind::Connect(_) | PqErrorKind::ConnectionLost => self.target_unavailable(&error),
            _ => self.not_lent(error.sqlstate.as_deref(), &error.message).unwrap_or_else(|| error.into()),
        })?;
        self.limited(loan.limits);
        self.on_standby.set(self.on_standby.get() || loan.on_standby);
        self.note(&backend)?;
        let canceller = loan.inner.canceller()?;
        let own = loan.inner.canceller()?;
        let by_backend = ByBackend::new(&self.target, &backend, name);
        let handle = self.arm(backend, Box::new(ByCanceller { canceller, by_backend }))?;
        loan.inner.on_notice(Some(self.notice_sink()));
        Ok(SessionWork { loan, control: &self.control, handle, own })
    }

    /// As [`WorkContext::session`], for work that is committed exactly once: what that needs beside the session is there
    /// before the work takes its first lock.
    ///
    /// # Errors
    /// As [`WorkContext::session`].
    pub(crate) fn committing_session(&self) -> Result<SessionWork<'_>, WorkError> {
        self.reserve_flush()?;
        self.session()
    }

    /// Makes sure that a flush will have a connection.
    ///
    /// # Errors
    /// When the target has none to give.
    pub(crate) fn reserve_flush(&self) -> Result<(), WorkError> {
        self.check()?;
        self.target.reserve_flush().map_err(|error| self.target_unavailable(&error))
    }

    /// Without an earlier session nothing has begun: whatever the kind, it may wait for its target.
    fn target_unavailable(&self, error: &dyn std::fmt::Display) -> WorkError {
        let error = JobError::new(ErrorCode::TargetUnavailable, error.to_string()).retryable();
        if self.had_session.get() {
            return WorkError::Retry(error);
        }
        self.nothing_took_effect();
        WorkError::Unavailable(error)
    }

    fn notice_sink(&self) -> NoticeSink {
        let said = Arc::clone(&self.said);
        Box::new(move |notice| said.say_notice(notice))
    }

    /// Asks something of the queue. Its troubles are not the job's: it waits for them to pass, for as long as the attempt
    /// may run.
    pub(crate) fn ask_the_queue<T>(
        &self,
        ask: impl Fn(&mut PgConnection) -> Result<T, DbError>,
    ) -> Result<T, WorkError> {
        match self.retrying(&self.services.control).run(ask) {
            Err(_) if self.control.stop_reason().is_some() => Err(WorkError::Cancelled),
            outcome => outcome.map_err(WorkError::from),
        }
    }

    /// While the queue is away, an attempt waits for it until it is to end.
    fn retrying(&self, pool: &Pool) -> RetryingPool {
        let control = Arc::clone(&self.control);
        RetryingPool::new(pool.clone(), move || control.may_wait(QUEUE_PAUSE))
    }

    /// What was written under a lease that isn't ours any more was written by nobody.
    fn held(&self, written: bool) -> Result<(), WorkError> {
        if written {
            return Ok(());
        }
        self.control.stop(StopReason::LeaseLost);
        Err(WorkError::Cancelled)
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
            Noted::PauseRequested => {
                self.control.stop(StopReason::Pause);
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
        self.had_effects(Effects::Possible);
        self.control.arm(backend, interrupt).map_err(|_| WorkError::Cancelled)
    }

    /// Where rows go that the job shows as its result.
    pub fn result_writer(&self, columns: Vec<Column>, limits: Limits) -> ResultWriter {
        ResultWriter::new(self.retrying(&self.services.results), self.job.lease, columns, limits)
    }

    /// The result that becomes visible when the job succeeds.
    pub fn keep_result(&self, result: FinishedResult) {
        *self.result.borrow_mut() = Some(result);
    }

    /// The result that becomes visible when the job fails with what the work returns next: what its error is about. A
    /// job that is tried again, cancelled or over its time has none.
    pub fn keep_result_of_failure(&self, result: FinishedResult) {
        *self.result_of_failure.borrow_mut() = Some(result);
    }

    /// What the attempt leaves behind, for its end.
    pub fn leave(self) -> LeftBehind {
        LeftBehind {
            statistics: self.statistics.into_inner(),
            result: self.result.into_inner(),
            result_of_failure: self.result_of_failure.into_inner(),
            effects: self.effects.get(),
            commit: self.commit.into_inner(),
            on_standby: self.on_standby.get(),
        }
    }
}
