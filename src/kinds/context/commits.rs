//! What of an attempt survives it: its checkpoint, and the transactions that are committed exactly once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::db::fate::{ServerLife, TransactionMark};
use crate::db::targets::FlushError;
use crate::kinds::context::{CommitState, QUEUE_PAUSE, WorkContext};
use crate::kinds::{WorkError, exactly_once};
use crate::queue::checkpoint::{self, Checkpoint, Effect, Outcome, Says};
use crate::queue::enqueue::has_nul;
use crate::queue::{ErrorCode, JobError, RawJson};
use crate::results::Manifest;

/// How long a transaction that holds its locks waits for a connection to be opened.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(10);
/// The largest cursor: 1 MiB. It is written with every batch.
const MAX_CURSOR_BYTES: usize = 1024 * 1024;

impl WorkContext<'_> {
    /// Keeps where the work is, under the lease: the next attempt finds it, whatever becomes of this one. Durable when
    /// this returns; one such write costs a commit of the queue.
    ///
    /// # Errors
    /// When the attempt is to end, or its lease is lost.
    pub fn save_checkpoint<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<(), WorkError> {
        self.check()?;
        self.save(cursor, Says::Further)
    }

    /// As [`WorkContext::save_checkpoint`], for work that is about to make what must not stay on its target: where
    /// the job ends without another word, however that comes,
    /// [`Work::clean_up_after`](crate::kinds::Work::clean_up_after) is given this checkpoint.
    /// [`WorkContext::nothing_left`] takes it back.
    ///
    /// # Errors
    /// When the attempt is to end, or its lease is lost.
    pub fn save_what_may_be_left<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<(), WorkError> {
        self.check()?;
        self.save(cursor, Says::MayLeave)
    }

    /// Nothing is left of what [`WorkContext::save_what_may_be_left`] told, and the work goes on here. An attempt
    /// that is to end may still say so.
    ///
    /// # Errors
    /// When the lease is lost, or the queue can't be asked.
    pub fn nothing_left<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<(), WorkError> {
        self.save(cursor, Says::NothingLeft)
    }

    fn save<T: Serialize + ?Sized>(&self, cursor: &T, says: Says) -> Result<(), WorkError> {
        let checkpoint = self.checkpoint_at(cursor)?;
        let advanced = self.advanced();
        let written = self.ask_the_queue(|connection| {
            checkpoint::save(connection, &self.job.lease, &checkpoint, advanced.as_deref(), says)
        })?;
        self.held(written)?;
        if advanced.is_some() {
            *self.commit.borrow_mut() = CommitState::None;
        }
        Ok(())
    }

    /// A cursor with what has been counted up to it.
    pub(in crate::kinds) fn checkpoint_at<T: Serialize + ?Sized>(&self, cursor: &T) -> Result<Checkpoint, WorkError> {
        let cursor = RawJson::of(cursor).map_err(|error| {
            WorkError::Fail(JobError::new(
                ErrorCode::InvalidCheckpoint,
                format!("the checkpoint has no JSON form: {error}"),
            ))
        })?;
        let refused = if has_nul(cursor.text()) {
            Some("the checkpoint holds the character \\u0000, which Postgres can't store".to_owned())
        } else {
            (cursor.text().len() > MAX_CURSOR_BYTES)
                .then(|| format!("the checkpoint is larger than {MAX_CURSOR_BYTES} bytes"))
        };
        match refused {
            Some(why) => Err(WorkError::Fail(JobError::new(ErrorCode::InvalidCheckpoint, why))),
            None => Ok(Checkpoint { cursor, statistics: *self.statistics.borrow() }),
        }
    }

    /// The last batch, where it is known to be committed and the queue doesn't know it yet.
    fn advanced(&self) -> Option<String> {
        match &*self.commit.borrow() {
            CommitState::Advanced(xid) => Some(xid.clone()),
            _ => None,
        }
    }

    /// What an earlier attempt kept last; `None` when there is nothing. What had been counted for the job's
    /// `statistics` up to there is counted again. Call it before anything else.
    ///
    /// # Errors
    /// When it isn't of this type, or the attempt is to end.
    pub fn checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, WorkError> {
        let saved = self.ask_the_queue(|connection| checkpoint::saved(connection, self.job.lease.job_id))?;
        let read = |saved: Checkpoint| {
            *self.statistics.borrow_mut() = saved.statistics;
            serde_json::from_str(saved.cursor.text()).map_err(|error| {
                let error =
                    JobError::new(ErrorCode::InvalidCheckpoint, format!("the checkpoint can't be read: {error}"));
                WorkError::Fail(error.with_hint("an older version may have written it: submit the work as a new job"))
            })
        };
        saved.map(read).transpose()
    }

    /// Does the last of the work, in one transaction on a Diesel connection, so that its effects and the job's end are
    /// one: whatever dies, they are there once when the job has succeeded, and not at all otherwise. What `work`
    /// returns is the job's output, should this process not live to say so. Work that changes nothing else may be
    /// `REPEATABLE` and `FENCED`. To be called once, as the last thing, and with no session of the attempt's own in
    /// hand: it takes one, and there are as many as threads. Costs two commits of the queue's and the target's
    /// besides its own.
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

    /// Does a part of the work, in one transaction on a Diesel connection, so that its effects and the cursor that
    /// `work` returns are one: whatever dies, the next attempt finds the cursor when the effects are there, and the
    /// one before when they aren't. Call it as often as there are parts; [`WorkContext::checkpoint`] says where to go
    /// on. Costs what [`WorkContext::exactly_once`] costs, less one commit of the queue's.
    ///
    /// ```
    /// use diesel::prelude::*;
    /// use slowlane::{WorkContext, WorkError};
    ///
    /// fn move_all(ctx: &WorkContext<'_>) -> Result<(), WorkError> {
    ///     let mut day: i32 = ctx.checkpoint()?.unwrap_or(0);
    ///     let mut connection = ctx.diesel()?;
    ///     while day < 31 {
    ///         day = ctx.commit_batch(&mut connection, |connection| {
    ///             let moved = diesel::sql_query("INSERT INTO archive SELECT * FROM sales WHERE day = $1")
    ///                 .bind::<diesel::sql_types::Integer, _>(day)
    ///                 .execute(connection)?;
    ///             ctx.count(|statistics| statistics.rows_affected += i64::try_from(moved).unwrap_or(0));
    ///             Ok(day + 1)
    ///         })?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// What `work` returns, after a rollback; otherwise as for any statement.
    pub fn commit_batch<T: Serialize>(
        &self,
        connection: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
    ) -> Result<T, WorkError> {
        exactly_once::batch(self, connection, work)
    }

    /// What ends the job is committed once. What is committed after it, or while it is in doubt, would have no record.
    pub(in crate::kinds) fn may_commit(&self) -> Result<(), WorkError> {
        if self.record_failed.get() {
            let error =
                JobError::new(ErrorCode::CommitUnknown, "whether the last transaction was recorded isn't known");
            return Err(WorkError::Fail(
                error.with_hint("return the error that it ended with: the next attempt finds out"),
            ));
        }
        match &*self.commit.borrow() {
            CommitState::None | CommitState::RolledBack(_) | CommitState::Advanced(_) => Ok(()),
            CommitState::InDoubt(_) | CommitState::Committed(_) => {
                let error = JobError::new(
                    ErrorCode::CommittedTwice,
                    "the work has sent the COMMIT of its last transaction already",
                );
                Err(WorkError::Fail(error.with_hint(
                    "do all of it in one call of exactly_once, and return what a commit_batch has failed with",
                )))
            }
        }
    }

    /// How far the transaction has come since it was recorded.
    pub(in crate::kinds) fn commit_is(&self, state: impl FnOnce(String) -> CommitState) {
        let mut commit = self.commit.borrow_mut();
        if let CommitState::InDoubt(xid) = &*commit {
            let xid = xid.clone();
            *commit = state(xid);
        }
    }

    /// A commit that was answered may have to be flushed once more: its wait for a standby may have been cut short.
    pub(in crate::kinds) fn settle_commit(
        &self,
        server: &ServerLife,
        state: impl FnOnce(String) -> CommitState,
    ) -> Result<(), WorkError> {
        if self.is_stopping() || self.target.is_synchronous() {
            self.flush(server)?;
        }
        self.commit_is(state);
        Ok(())
    }

    /// Makes what was written on this server so far safe. A standby that is away is waited for, for as long as the
    /// attempt may run. A connection isn't: the transaction holds its locks meanwhile.
    pub(in crate::kinds) fn flush(&self, server: &ServerLife) -> Result<(), WorkError> {
        let mut without_session = None;
        loop {
            let flushed = self.target.flush(server);
            let since = match flushed {
                Err(FlushError::NoSession(_)) => *without_session.get_or_insert_with(Instant::now),
                _ => *without_session.insert(Instant::now()),
            };
            match flushed {
                Err(_) if since.elapsed() < CONNECTION_PATIENCE && self.control.may_wait(QUEUE_PAUSE) => {}
                Err(_) if self.control.stop_reason().is_some() => return Err(WorkError::Cancelled),
                outcome => {
                    return outcome.map_err(|error| {
                        WorkError::Retry(JobError::new(ErrorCode::TargetUnavailable, error.to_string()).retryable())
                    });
                }
            }
        }
    }

    /// The end of the job with this output, as it is recorded.
    pub(in crate::kinds) fn end_with(&self, output: RawJson) -> Result<Effect, WorkError> {
        let result = self.manifest.borrow().as_ref().map(Manifest::finished).transpose();
        let result = result.map_err(|error| WorkError::Fail(JobError::new(ErrorCode::Internal, error.to_string())))?;
        Ok(Effect::End(Outcome { output, statistics: *self.statistics.borrow(), result }))
    }

    /// Records the transaction that is about to be committed, and what it comes to.
    pub(in crate::kinds) fn record(&self, mark: &TransactionMark, effect: &Effect) -> Result<(), WorkError> {
        let advanced = self.advanced();
        // Before it is sent: an answer that is lost leaves it recorded.
        let seq = self.said.recorded.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        *self.commit.borrow_mut() = CommitState::InDoubt(mark.xid.clone());
        // Until its answer is there, the batch before may be known to this attempt alone.
        self.record_failed.set(true);
        let written = self.ask_the_queue(|connection| {
            checkpoint::record(connection, &self.job.lease, seq, mark, effect, advanced.as_deref())
        })?;
        self.held(written)?;
        self.record_failed.set(false);
        Ok(())
    }
}
