//! Locks that others hold: each try waits for a bounded time, there is a bounded number of them, and each that was in
//! vain is told in the progress and in the job's log.
//!
//! Who waits for a lock keeps out whoever comes behind and needs less: a try is as long as the others' wait.

use std::time::{Duration, Instant};

use crate::pq::Session;
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;
use crate::work::context::WorkContext;

use super::relation::Relation;

/// How often a lock is tried for before the attempt fails.
pub const TRIES: u32 = 5;
/// How long others have the table to themselves after the first try. Doubled after each.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at whether another job is still at work.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The upper half of the advisory lock's key; the lower one is the table's oid.
const BY_PARTS: i64 = 0x736c_6f77;
/// SQLSTATE `deadlock_detected`.
pub(super) const DEADLOCK: &str = "40P01";
/// SQLSTATE `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// See the module.
pub(super) struct Locks<'c, 'a> {
    ctx: &'c WorkContext<'a>,
    timeout: Duration,
    table: String,
    /// What a concurrent step locks first can be asked for apart.
    may_probe: bool,
    /// The most that a step has needed.
    pub tries: u32,
}

impl<'c, 'a> Locks<'c, 'a> {
    pub fn new(ctx: &'c WorkContext<'a>, timeout: Duration, relation: &Relation) -> Locks<'c, 'a> {
        let timeout = Duration::from_millis(ctx.lock_ms(Some(timeout)));
        Locks { ctx, timeout, table: relation.table.clone(), may_probe: relation.may_be_locked, tries: 0 }
    }

    /// Runs `sql`, which waits for each lock for so long and no longer, until it has what it needs.
    pub fn step(&mut self, session: &mut Session, phase: &str, sql: &str) -> Result<(), WorkError> {
        self.set_timeout(session, Some(self.timeout))?;
        let (mut n, mut pause) = (1, FIRST_PAUSE);
        loop {
            self.ctx.check()?;
            self.tries = self.tries.max(n);
            match n {
                1 => self.ctx.phase(phase),
                n => self.ctx.phase(&format!("{phase}, try {n} of {TRIES}")),
            }
            let ended = match session.execute_batch(sql) {
                Ok(()) => return Ok(()),
                Err(error) if error.sqlstate.as_deref() == Some(DEADLOCK) && n < TRIES => error.message,
                Err(error) if error.sqlstate.as_deref() != Some(LOCK_NOT_AVAILABLE) => return Err(error.into()),
                Err(_) if n >= TRIES => return Err(self.given_up()),
                Err(_) => format!("gave up after {} ms", self.timeout.as_millis()),
            };
            let told = format!(
                "somebody holds a lock on {}: try {n} of {TRIES} {ended}, the next one begins in {} ms",
                self.table,
                pause.as_millis()
            );
            self.ctx.phase(&told);
            self.ctx.log(LogLevel::Warning, &told);
            self.ctx.wait(pause)?;
            self.ctx.waits_again();
            (n, pause) = (n.saturating_add(1), pause.saturating_mul(2));
        }
    }

    /// The number of tries that a step needed counts for the whole.
    pub fn tried(&mut self, tries: u32) {
        self.tries = self.tries.max(tries);
    }

    /// Waits until nobody else maintains or changes the table, as a concurrent step is about to. It keeps no lock.
    pub fn probe(&mut self, session: &mut Session) -> Result<(), WorkError> {
        if !self.may_probe {
            return Ok(());
        }
        // Two statements in one message are one transaction.
        let sql = format!("SELECT; LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE", self.table);
        self.step(session, &format!("waiting for {}", self.table), &sql)
    }

    /// Waits until no other job makes an index of this table by parts. The lock is kept until the session is given back.
    ///
    /// It is asked for again and again: a statement that waits in the server has a snapshot, and the build of the other
    /// job would wait for the end of that.
    pub fn alone(&mut self, session: &mut Session, oid: &str) -> Result<(), WorkError> {
        let limit = self.timeout.saturating_mul(TRIES);
        let began = Instant::now();
        loop {
            let rows = session.query(
                "SELECT pg_catalog.pg_try_advisory_lock($1::pg_catalog.int8 * 4294967296 + $2::pg_catalog.int8)",
                &[Some(&BY_PARTS.to_string()), Some(oid)],
            )?;
            if rows.get(0, 0) == Some("t") {
                return Ok(());
            }
            if !limit.is_zero() && began.elapsed() >= limit {
                let message = format!("another job has made an index of {} for more than {limit:?}", self.table);
                let hint = "let that job end first, or raise lock_timeout_ms: five times as long is waited for it";
                let error = JobError::new(ErrorCode::LockTimeout, message).retryable().with_hint(hint);
                return Err(WorkError::Retry(JobError { sqlstate: Some(LOCK_NOT_AVAILABLE.to_owned()), ..error }));
            }
            self.ctx.phase(&format!("waiting for another job that makes an index of {}", self.table));
            self.ctx.wait(LOOK_AGAIN)?;
        }
    }

    /// Runs a concurrent step. After its first lock it only waits for transactions to end, and keeps nobody out: a limit
    /// would throw away what it has built. One of the target's own login stays.
    pub fn without_limit(&self, session: &mut Session, sql: &str) -> Result<(), WorkError> {
        self.set_timeout(session, None)?;
        self.ctx.check()?;
        Ok(session.execute_batch(sql)?)
    }

    fn set_timeout(&self, session: &mut Session, timeout: Option<Duration>) -> Result<(), WorkError> {
        let ms = self.ctx.lock_ms(timeout);
        self.ctx.waits_for_locks((ms > 0).then(|| Duration::from_millis(ms)));
        Ok(session.execute_batch(&format!("SET lock_timeout = {ms}"))?)
    }

    fn given_up(&self) -> WorkError {
        let message = format!(
            "somebody holds a lock on {}, and did so in each of {TRIES} tries of {} ms",
            self.table,
            self.timeout.as_millis()
        );
        let hint = "see pg_locks and pg_stat_activity for who holds it; let its transaction end, raise lock_timeout_ms, or \
                    submit the job for a quieter time";
        let error = JobError::new(ErrorCode::LockTimeout, message).retryable().with_hint(hint);
        WorkError::Retry(JobError { sqlstate: Some(LOCK_NOT_AVAILABLE.to_owned()), ..error })
    }
}
