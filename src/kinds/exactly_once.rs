//! Committing work on a target exactly once: its effects and what the job says of them become one.
//!
//! The transaction is marked, its WAL flushed, and the mark recorded with the queue under the job's lease; only then
//! the COMMIT is sent. Whoever comes after a crash asks the target what became of that very transaction. docs/exactly-once.md
//! has the reasons. Nothing is created in the target's database.

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use serde::Serialize;

use crate::db::fate::{MARK_SQL, SAFE_COMMIT_SQL, TransactionMark};
use crate::kinds::context::WorkContext;
use crate::kinds::{CONNECTION_LOST, WorkError};
use crate::pq::{Notice, PqErrorKind, Session};
use crate::queue::{JobError, RawJson};

/// Commits the transaction that `session` is in as the end of the job, whose output is `output`. Rolls it back when it
/// may not be committed.
///
/// # Errors
/// When the transaction could not be prepared for it, the lease is lost, the attempt is to end, or the server refused the
/// COMMIT: then nothing took effect. An error of [`CONNECTION_LOST`] leaves open whether it did; the worker finds out.
pub fn commit<T: Serialize + ?Sized>(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    output: &T,
) -> Result<(), WorkError> {
    if let Err(error) = prepare(ctx, session, output) {
        // A session that can't be rolled back is closed, which does the same.
        if session.command("ROLLBACK").is_ok() || ctx.is_stopping() {
            ctx.nothing_took_effect();
        }
        return Err(error);
    }
    // What the server says meanwhile is looked at first: a commit whose wait for a standby was cut short says so.
    session.on_notice(None);
    session.take_notices();
    let answer = session.command("COMMIT");
    let notices = session.take_notices();
    let cut_short = notices.iter().any(Notice::is_warning);
    ctx.hear(session, notices);
    match answer {
        Ok(tag) if tag == "COMMIT" && cut_short => Err(in_doubt("the COMMIT's wait for a standby was cut short")),
        Ok(tag) if tag == "COMMIT" => {
            ctx.committed();
            Ok(())
        }
        // The answer to a transaction that had failed is ROLLBACK.
        Ok(_) => {
            ctx.nothing_took_effect();
            Err(WorkError::Fail(JobError::new("sql_error", "the server rolled the transaction back at its end")))
        }
        // An error that leaves the session usable was raised before anything was committed.
        Err(error) if error.kind == PqErrorKind::Server && session.is_idle() => {
            ctx.nothing_took_effect();
            Err(error.into())
        }
        // Any other, whatever its SQLSTATE: a server that dies of a full disk may have written the commit.
        Err(error) => Err(in_doubt(&error.to_string())),
    }
}

fn in_doubt(why: &str) -> WorkError {
    WorkError::Retry(JobError::new(CONNECTION_LOST, why).retryable())
}

/// Everything before the COMMIT.
fn prepare<T: Serialize + ?Sized>(ctx: &WorkContext<'_>, session: &mut Session, output: &T) -> Result<(), WorkError> {
    ctx.not_committed_yet()?;
    ctx.check()?;
    let output = json(output)?;
    let rows = session.query(MARK_SQL, &[Some(&ctx.lease().application_name())])?;
    let column = |n: usize| rows.get(0, n).unwrap_or_default();
    let mark = TransactionMark::new(column(0), column(1), column(2));
    ctx.flush(&mark.server)?;
    // Answered after the flush: so the server that was flushed is the one that gave out the number, and not one that has
    // crashed in between and gives it to somebody else.
    let left = ctx.remaining().as_millis().max(1);
    session.execute_batch(&format!("SET LOCAL statement_timeout = {left}; {SAFE_COMMIT_SQL}"))?;
    ctx.record(&mark, output)?;
    ctx.check()
}

fn json<T: Serialize + ?Sized>(output: &T) -> Result<RawJson, WorkError> {
    RawJson::of(output).map_err(|error| {
        WorkError::Fail(JobError::new("invalid_output", format!("the output has no JSON form: {error}")))
    })
}

#[derive(QueryableByName)]
struct Marked {
    #[diesel(sql_type = Text)]
    xid: String,
    #[diesel(sql_type = Text)]
    system: String,
    #[diesel(sql_type = Text)]
    wal_file: String,
}

/// As [`commit`], around a transaction on a Diesel connection. See [`WorkContext::exactly_once`].
pub(super) fn transaction<T: Serialize>(
    ctx: &WorkContext<'_>,
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    ctx.not_committed_yet()?;
    AnsiTransactionManager::begin_transaction(connection)?;
    let prepared = work(connection).and_then(|output| {
        ctx.check()?;
        let json = json(&output)?;
        let marked: Marked =
            diesel::sql_query(MARK_SQL).bind::<Text, _>(ctx.lease().application_name()).get_result(connection)?;
        let mark = TransactionMark::new(&marked.xid, &marked.system, &marked.wal_file);
        ctx.flush(&mark.server)?;
        // After the flush, as in `prepare`.
        connection.batch_execute(SAFE_COMMIT_SQL)?;
        ctx.record(&mark, json)?;
        ctx.check()?;
        Ok(output)
    });
    match prepared {
        Ok(output) => {
            // Diesel tells a refused COMMIT from a lost connection by words alone: the worker asks the server.
            AnsiTransactionManager::commit_transaction(connection).map_err(|error| in_doubt(&error.to_string()))?;
            if ctx.may_have_been_cut_short() {
                // Diesel passes no warning on.
                return Err(in_doubt("whether the commit has reached the standby isn't known yet"));
            }
            ctx.committed();
            Ok(output)
        }
        Err(error) => {
            if AnsiTransactionManager::rollback_transaction(connection).is_ok() {
                ctx.nothing_took_effect();
            }
            Err(error)
        }
    }
}
