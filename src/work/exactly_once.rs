//! Committing work on a target exactly once: its effects and what the job says of them become one. Work in parts is
//! committed the same way, part by part, each with the cursor at which it goes on.
//!
//! The transaction is marked, its WAL flushed, and the mark recorded with the queue under the job's lease; only then
//! the COMMIT is sent. Whoever comes after a crash asks the target what became of that very transaction.
//! docs/exactly-once.md has the reasons. Nothing is created in the target's database.

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use serde::Serialize;

use crate::db::fate::{MARK_SQL, SAFE_COMMIT_SQL, ServerLife, TransactionMark};
use crate::pq::{PqErrorKind, Session, TransactionStatus};
use crate::queue::lifecycle::checkpoint::Effect;
use crate::queue::{ErrorCode, JobError, RawJson};
use crate::work::WorkError;
use crate::work::context::{CommitState, WorkContext};

/// Commits the transaction that `session` is in as the end of the job, whose output is `output`. Rolls it back when it
/// may not be committed.
///
/// # Errors
/// When the transaction could not be prepared for it, the lease is lost, the attempt is to end, or the server refused
/// the COMMIT: then nothing of it took effect. After any other error of the COMMIT the worker finds out.
pub fn commit<T: Serialize + ?Sized>(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    output: &T,
) -> Result<(), WorkError> {
    let effect = || Ok(ctx.end_with(json(output)?));
    commit_as(ctx, session, effect, CommitState::Committed)
}

/// Commits the transaction that `session` is in as a part of the job, whose work goes on at `cursor`, in this attempt
/// or in the next one. Rolls it back when it may not be committed.
///
/// # Errors
/// As [`commit`].
pub fn commit_batch<T: Serialize + ?Sized>(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    cursor: &T,
) -> Result<(), WorkError> {
    let effect = || ctx.checkpoint_at(cursor).map(Effect::Batch);
    commit_as(ctx, session, effect, CommitState::Advanced)
}

fn commit_as(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    effect: impl FnOnce() -> Result<Effect, WorkError>,
    committed: fn(String) -> CommitState,
) -> Result<(), WorkError> {
    let server = match prepare(ctx, session, effect) {
        Ok(server) => server,
        Err(error) => {
            // A session that can't be rolled back is closed, which does the same.
            if session.command("ROLLBACK").is_ok() {
                ctx.commit_is(CommitState::RolledBack);
            }
            return Err(error);
        }
    };
    match session.command("COMMIT") {
        Ok(tag) if tag == "COMMIT" => ctx.settle_commit(&server, committed),
        // The answer to a transaction that had failed is ROLLBACK.
        Ok(_) => {
            ctx.commit_is(CommitState::RolledBack);
            Err(WorkError::Fail(JobError::new(
                ErrorCode::SqlError,
                "the server rolled the transaction back at its end",
            )))
        }
        Err(error) => {
            // An error that leaves the session usable was raised before anything was committed. Any other, whatever its
            // SQLSTATE, says nothing: a server that dies of a full disk may have written the commit.
            if error.kind == PqErrorKind::Server && session.is_idle() {
                ctx.commit_is(CommitState::RolledBack);
            }
            Err(error.into())
        }
    }
}

/// Everything before the COMMIT. Says which server it is.
fn prepare(
    ctx: &WorkContext<'_>,
    session: &mut Session,
    effect: impl FnOnce() -> Result<Effect, WorkError>,
) -> Result<ServerLife, WorkError> {
    ctx.may_commit()?;
    ctx.check()?;
    if session.transaction_status() == TransactionStatus::Idle {
        let error = JobError::new(ErrorCode::NoTransaction, "the session is in no transaction that could be committed");
        return Err(WorkError::Fail(error.with_hint("what ran before has taken effect by itself: BEGIN comes first")));
    }
    let effect = effect()?;
    let rows = session.query(MARK_SQL, &[Some(&ctx.lease().application_name())])?;
    let column = |n: usize| rows.get(0, n).unwrap_or_default();
    let mark = TransactionMark::new(column(0), column(1), column(2));
    ctx.flush(&mark.server)?;
    // Answered after the flush: so the server that was flushed is the one that gave out the number, and not one that
    // has crashed in between and gives it to somebody else.
    session.execute_batch(&last_settings(ctx))?;
    ctx.record(&mark, &effect)?;
    ctx.check()?;
    Ok(mark.server)
}

/// What holds for the rest of the transaction: its COMMIT is as safe as it can be. It may have to wait for the queue
/// before; for how long, the login's own `idle_in_transaction_session_timeout` says. One that this ends is rolled back,
/// and tried again.
fn last_settings(ctx: &WorkContext<'_>) -> String {
    let left = ctx.statement_ms_left();
    format!("SET LOCAL statement_timeout = {left}; {SAFE_COMMIT_SQL}")
}

fn json<T: Serialize + ?Sized>(output: &T) -> Result<RawJson, WorkError> {
    RawJson::of(output).map_err(|error| {
        WorkError::Fail(JobError::new(ErrorCode::InvalidOutput, format!("the output has no JSON form: {error}")))
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
pub(crate) fn transaction<T: Serialize>(
    ctx: &WorkContext<'_>,
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let effect = |output: &T| Ok(ctx.end_with(json(output)?));
    transaction_as(ctx, connection, work, effect, CommitState::Committed)
}

/// As [`commit_batch`], around a transaction on a Diesel connection. See [`WorkContext::commit_batch`].
pub(crate) fn batch<T: Serialize>(
    ctx: &WorkContext<'_>,
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let effect = |cursor: &T| ctx.checkpoint_at(cursor).map(Effect::Batch);
    transaction_as(ctx, connection, work, effect, CommitState::Advanced)
}

fn transaction_as<T: Serialize>(
    ctx: &WorkContext<'_>,
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, WorkError>,
    effect: impl FnOnce(&T) -> Result<Effect, WorkError>,
    committed: fn(String) -> CommitState,
) -> Result<T, WorkError> {
    ctx.may_commit()?;
    ctx.reserve_flush()?;
    // Within another one it would be a savepoint, which a ROLLBACK of that one takes back.
    AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN").map_err(|error| match error {
        diesel::result::Error::AlreadyInTransaction => {
            let error = JobError::new(ErrorCode::AlreadyInTransaction, "the connection is in a transaction already");
            WorkError::Fail(error.with_hint("commit or roll back that one before"))
        }
        error => error.into(),
    })?;
    let prepared = work(connection).and_then(|value| {
        ctx.check()?;
        let effect = effect(&value)?;
        let marked: Marked =
            diesel::sql_query(MARK_SQL).bind::<Text, _>(ctx.lease().application_name()).get_result(connection)?;
        let mark = TransactionMark::new(&marked.xid, &marked.system, &marked.wal_file);
        ctx.flush(&mark.server)?;
        // After the flush, as in `prepare`.
        connection.batch_execute(&last_settings(ctx))?;
        ctx.record(&mark, &effect)?;
        ctx.check()?;
        Ok((value, mark.server))
    });
    match prepared {
        Ok((value, server)) => {
            // Diesel tells a refused COMMIT from a lost connection by words alone: the worker asks the server.
            AnsiTransactionManager::commit_transaction(connection)?;
            ctx.settle_commit(&server, committed)?;
            Ok(value)
        }
        Err(error) => {
            if AnsiTransactionManager::rollback_transaction(connection).is_ok() {
                ctx.commit_is(CommitState::RolledBack);
            }
            Err(error)
        }
    }
}
