//! `slowlane::testing`: kinds of one's own, run, killed, cancelled and retried in one's own tests.

use std::sync::atomic::{AtomicI64, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use serde::{Deserialize, Serialize};
use slowlane::queue::JobState;
use slowlane::testing::{Bench, TestingError};
use slowlane::{JobError, Registry, Work, WorkContext, WorkError};

/// What the kinds of this test share.
#[derive(Default)]
struct Attempts(AtomicI64);

/// Adds a row in each step, and waits in the second one as long as somebody holds its lock.
#[derive(Serialize, Deserialize)]
struct Steps {}

impl Work for Steps {
    const KIND: &'static str = "steps";
    const REPEATABLE: bool = true;
    type Output = i64;

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<i64, WorkError> {
        ctx.state::<Attempts>()?.0.fetch_add(1, Ordering::SeqCst);
        let mut connection = ctx.diesel()?;
        if ctx.checkpoint::<i64>()?.is_none() {
            diesel::sql_query("INSERT INTO steps VALUES (1)").execute(&mut *connection)?;
            ctx.save_checkpoint(&1)?;
        }
        diesel::sql_query("SELECT pg_advisory_xact_lock(7)").execute(&mut *connection)?;
        diesel::sql_query("INSERT INTO steps VALUES (2)").execute(&mut *connection)?;
        Ok(ctx.state::<Attempts>()?.0.load(Ordering::SeqCst))
    }
}

/// Asks for what it was never given.
#[derive(Serialize, Deserialize)]
struct Stateless {}

impl Work for Stateless {
    const KIND: &'static str = "stateless";
    const REPEATABLE: bool = true;
    type Output = ();

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<(), WorkError> {
        ctx.state::<String>().map(drop)
    }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn rows(connection: &mut PgConnection) -> i64 {
    diesel::sql_query("SELECT count(*) FROM steps").get_result::<Count>(connection).unwrap().count
}

fn waits_for_a_lock(job: &slowlane::queue::Job) -> bool {
    job.status.progress.as_ref().is_some_and(|progress| progress.wait_event.as_deref() == Some("Lock:advisory"))
}

#[test]
fn work_is_run_killed_cancelled_and_retried() {
    let kinds = Registry::default().with::<Steps>().with::<Stateless>().state(Attempts::default());
    let bench = Bench::start(kinds).unwrap();
    let mut target = bench.target().unwrap();
    target.batch_execute("CREATE TABLE steps (n int)").unwrap();
    let work = Steps {};
    let job = bench.run(&work).unwrap();
    assert_eq!((job.status.state, job.outcome.output.as_ref().unwrap().text()), (JobState::Succeeded, "1"));
    assert!(matches!(bench.kill(job.id), Err(TestingError::NotPossible(id, "killed", _)) if id == job.id));
    assert!(matches!(bench.retry(job.id), Err(TestingError::NotPossible(id, "retried", _)) if id == job.id));

    // Killed, it goes on at its checkpoint in another attempt.
    target.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
    let id = bench.submit(&work).unwrap();
    bench.until(id, waits_for_a_lock).unwrap();
    bench.kill(id).unwrap();
    let rescued = bench.until(id, |job| job.status.interruptions == 1 && waits_for_a_lock(job)).unwrap();
    assert_eq!((rescued.status.attempt, rows(&mut target)), (1, 3));
    target.batch_execute("SELECT pg_advisory_unlock(7)").unwrap();
    assert_eq!((bench.ended(id).unwrap().status.state, rows(&mut target)), (JobState::Succeeded, 4));

    // Cancelled, it can be put in again.
    target.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
    let id = bench.submit(&work).unwrap();
    bench.until(id, waits_for_a_lock).unwrap();
    bench.cancel(id).unwrap();
    assert_eq!(bench.ended(id).unwrap().status.state, JobState::Cancelled);
    target.batch_execute("SELECT pg_advisory_unlock(7)").unwrap();
    let again = bench.retry(id).unwrap();
    let job = bench.ended(again).unwrap();
    assert_eq!((job.status.state, job.retry_of), (JobState::Succeeded, Some(id)));

    let error = bench.run(&Stateless {}).unwrap().outcome.error.unwrap();
    let error: JobError = serde_json::from_str(error.text()).unwrap();
    assert!(error.code == "internal" && error.message.contains("alloc::string::String"), "{error}");
    let (cause, folder): (&dyn std::error::Error, _) = (&WorkError::Fail(error), bench.folder().to_owned());
    assert!(cause.source().unwrap().to_string().starts_with("internal: "));
    drop(target);
    drop(bench);
    assert!(!folder.exists());
}
