//! Locks that others hold: each try waits for a bounded time, there is a bounded number of them, and each that was in
//! vain is told in the progress and in the job's log.
//!
//! Who waits for a lock keeps out whoever comes behind and needs less: a try is as long as the others' wait.

use std::time::Duration;

use crate::kinds::WorkError;
use crate::kinds::context::WorkContext;
use crate::pq::Session;
use crate::queue::log::LogLevel;
use crate::queue::{ErrorCode, JobError};

use super::relation::Relation;

/// How often a lock is tried for before the attempt fails.
pub const TRIES: u32 = 5;
/// How long others have the table to themselves after the first try. Doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
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
        Locks { ctx, timeout, table: relation.table.clone(), may_probe: relation.may_be_locked, tries: 0 }
    }

    /// Runs `sql`, which waits for each lock for so long and no longer, until it has what it needs.
    pub fn step(&mut self, session: &mut Session, phase: &str, sql: &str) -> Result<(), WorkError> {
        self.set_timeout(session, self.timeout)?;
        let (mut n, mut pause) = (1, FIRST_PAUSE);
        loop {
            self.ctx.check()?;
            self.tries = self.tries.max(n);
            match n {
                1 => self.ctx.phase(phase),
                n => self.ctx.phase(&format!("{phase}, try {n} of {TRIES}")),
            }
            match session.execute_batch(sql) {
                Err(error) if error.sqlstate.as_deref() != Some(LOCK_NOT_AVAILABLE) => return Err(error.into()),
                Ok(()) => return Ok(()),
                Err(_) if n >= TRIES => return Err(self.given_up()),
                Err(_) => {}
            }
            let told = format!(
                "somebody holds a lock on {}: try {n} of {TRIES} gave up after {} ms, the next one begins in {} ms",
                self.table,
                self.timeout.as_millis(),
                pause.as_millis()
            );
            self.ctx.phase(&told);
            self.ctx.log(LogLevel::Warning, &told);
            self.ctx.wait(pause)?;
            (n, pause) = (n.saturating_add(1), pause.saturating_mul(2));
        }
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

    /// Runs a concurrent step. After its first lock it only waits for transactions to end, and keeps nobody out: a limit
    /// would throw away what it has built.
    pub fn without_limit(&self, session: &mut Session, sql: &str) -> Result<(), WorkError> {
        self.set_timeout(session, Duration::ZERO)?;
        self.ctx.check()?;
        Ok(session.execute_batch(sql)?)
    }

    fn set_timeout(&self, session: &mut Session, timeout: Duration) -> Result<(), WorkError> {
        Ok(session.execute_batch(&format!("SET lock_timeout = {}", timeout.as_millis()))?)
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
