//! A batch that is tried until it comes to something: smaller when it takes too long, later when others are in the way.

use std::time::{Duration, Instant};

use crate::kinds::backfill::batch::{Batch, Statements, without_position};
use crate::kinds::backfill::size::BatchSize;
use crate::kinds::backfill::{Cursor, Progress};
use crate::kinds::prepare_error::PrepareError;
use crate::pq::{PqError, Session};
use crate::queue::record::log::LogLevel;
use crate::queue::{ErrorCode, JobError};
use crate::work::context::WorkContext;
use crate::work::{QUERY_CANCELED, WorkError};

/// How often in a row a batch may meet locks, deadlocks and serialization failures.
const MAX_CONFLICTS: u32 = 10;
/// How often a batch of one row may take too long.
const MAX_TIMEOUTS: u32 = 3;
/// The pauses after a conflict: the first, and the longest.
const CONFLICT_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a batch came to nothing, and may come to something when it is smaller, or later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    TookTooLong,
    Conflict,
}

impl Trouble {
    fn of(error: &PqError) -> Option<Trouble> {
        match error.sqlstate.as_deref()? {
            QUERY_CANCELED => Some(Trouble::TookTooLong),
            "55P03" | "40P01" | "40001" => Some(Trouble::Conflict),
            _ => None,
        }
    }
}

/// A batch, tried as often as makes sense.
pub(super) struct Attempted<'s> {
    pub statements: &'s Statements,
    /// A batch that takes longer is stopped.
    pub timeout: Duration,
    pub progress: &'s Progress<'s, 's>,
}

impl Attempted<'_> {
    /// Changes the next rows in a transaction, and leaves it open. One that takes too long or meets others' locks is
    /// rolled back, and tried again with half of its rows. `None` when no row is left.
    pub fn batch(
        &self,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        cursor: &Cursor,
        size: &mut BatchSize,
    ) -> Result<Option<Batch>, WorkError> {
        let (mut conflicts, mut timeouts) = (0_u32, 0_u32);
        let mut pause = CONFLICT_PAUSE.0;
        loop {
            ctx.check()?;
            let began = Instant::now();
            let error = match self.once(ctx, session, cursor, size.rows()) {
                Ok(Some(batch)) => {
                    size.took(batch.scanned, began.elapsed());
                    return Ok(Some(batch));
                }
                Ok(None) => {
                    session.command("ROLLBACK")?;
                    return Ok(None);
                }
                Err(error) => error,
            };
            // Stopped by our own cancel, perhaps.
            ctx.check()?;
            let Some(trouble) = Trouble::of(&error) else {
                return Err(PrepareError::of_run(error).or_server(without_position));
            };
            session.command("ROLLBACK")?;
            let of_one = size.rows() == 1;
            size.split();
            match trouble {
                Trouble::TookTooLong if of_one => {
                    timeouts += 1;
                    if timeouts >= MAX_TIMEOUTS {
                        return Err(self.too_slow(ctx, cursor));
                    }
                }
                Trouble::TookTooLong => {
                    let rows = size.rows();
                    ctx.log(LogLevel::Info, &format!("a batch took too long, and is tried with {rows} rows"));
                }
                Trouble::Conflict => {
                    conflicts += 1;
                    if conflicts >= MAX_CONFLICTS {
                        return Err(without_position(error));
                    }
                    let again = format!("waiting: {}, then try {} of {MAX_CONFLICTS}", error.message, conflicts + 1);
                    self.progress.tell(cursor.done.rows_scanned, &again);
                    ctx.log(LogLevel::Warning, &format!("a batch is tried again: {}", error.message));
                    ctx.wait(pause)?;
                    ctx.waits_again();
                    pause = pause.saturating_mul(2).min(CONFLICT_PAUSE.1);
                }
            }
        }
    }

    fn once(
        &self,
        ctx: &WorkContext<'_>,
        session: &mut Session,
        cursor: &Cursor,
        rows: u64,
    ) -> Result<Option<Batch>, PqError> {
        let timeout = ctx.statement_ms(self.timeout.min(ctx.remaining()));
        // Others may wait for what it has by then. Well below the other timeout, so that it is clear which one it was.
        let patience = (Duration::from_millis(ctx.statement_ms(self.timeout)) / 2).min(ctx.lock_timeout());
        let lock_timeout = ctx.lock_ms(Some(patience));
        ctx.waits_for_locks(Some(patience));
        session.execute_batch(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             SET LOCAL statement_timeout = {timeout}; SET LOCAL lock_timeout = {lock_timeout}"
        ))?;
        self.statements.run(session, cursor.after.as_deref(), &cursor.last, rows)
    }

    fn too_slow(&self, ctx: &WorkContext<'_>, cursor: &Cursor) -> WorkError {
        let after = cursor.after.as_ref().map_or("the beginning".to_owned(), |key| key.join(", "));
        let limit = ctx.statement_ms(self.timeout);
        let message = format!("a batch of one row took longer than {limit} ms, behind {after}");
        let hint = match u128::from(limit) < self.timeout.as_millis() {
            true => {
                "see by EXPLAIN whether the key's index is used, or raise the statement_timeout of the target's own login"
            }
            false => "see by EXPLAIN whether the key's index is used, or raise target_batch_ms",
        };
        WorkError::Fail(JobError::new(ErrorCode::BatchTimeout, message).with_hint(hint))
    }
}
