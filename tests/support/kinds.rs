//! Kinds of work whose course a test decides.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::{Connection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use slowlane::kinds::execute::{Execute, Executed};
use slowlane::queue::JobError;
use slowlane::work::{Registry, UploadArg, Work, WorkContext, WorkError};
use uuid::Uuid;

use super::PATIENCE;

/// What a gated attempt does when it is let through.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Succeed,
    Retry,
    Fail,
    Panic,
    Snooze,
}

/// The test's side of a gate.
pub struct Gate {
    arrived: Receiver<i32>,
    go: Sender<Step>,
}

impl Gate {
    /// A gate that jobs name by `name`.
    pub fn new(name: &str) -> Gate {
        let (arrive, arrived) = channel();
        let (go, steps) = channel();
        GATES.lock().unwrap().insert(name.to_owned(), (arrive, std::sync::Arc::new(Mutex::new(steps))));
        Gate { arrived, go }
    }

    /// Waits for an attempt to arrive; its number.
    #[track_caller]
    pub fn arrived(&self) -> i32 {
        self.arrived.recv_timeout(PATIENCE).expect("no attempt arrived")
    }

    /// Lets one attempt through.
    pub fn go(&self, step: Step) {
        self.go.send(step).unwrap();
    }
}

type Sides = (Sender<i32>, std::sync::Arc<Mutex<Receiver<Step>>>);
static GATES: LazyLock<Mutex<HashMap<String, Sides>>> = LazyLock::new(Mutex::default);

/// Two statements on a Diesel connection, committed exactly once: the second one may be made to wait.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DieselOnce {}

/// What [`DieselOnce`] says: in the form that `execute` has.
#[derive(Serialize)]
pub struct Counts {
    statements: Vec<Count>,
}

#[derive(Serialize)]
struct Count {
    rows_affected: usize,
}

impl Work for DieselOnce {
    const KIND: &'static str = "diesel_once";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Counts;

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Counts, WorkError> {
        ctx.exactly_once(|connection| {
            let mut statements = Vec::new();
            for sql in [
                "INSERT INTO public.effects VALUES ('once')",
                "DO 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); END'",
            ] {
                statements.push(Count { rows_affected: diesel::sql_query(sql).execute(connection)? });
            }
            ctx.count(|statistics| statistics.rows_affected = 1);
            Ok(Counts { statements })
        })
    }
}

/// Three batches on a Diesel connection, each an effect: the second one may be made to wait.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DieselBatches {}

impl Work for DieselBatches {
    const KIND: &'static str = "diesel_batches";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    const RESUMABLE: bool = true;
    type Output = i32;

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<i32, WorkError> {
        let mut done: i32 = ctx.checkpoint()?.unwrap_or(0);
        let mut connection = ctx.diesel()?;
        while done < 3 {
            done = ctx.commit_batch(&mut connection, |connection| {
                diesel::sql_query("INSERT INTO public.effects VALUES ('batch')").execute(connection)?;
                if done == 1 {
                    diesel::sql_query("DO 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); END'").execute(connection)?;
                }
                ctx.count(|statistics| statistics.rows_affected += 1);
                Ok(done + 1)
            })?;
        }
        Ok(done)
    }
}

/// Says what an SQL expression is on its sessions, on the driver that it names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shows {
    sql: String,
    diesel: bool,
}

#[derive(diesel::QueryableByName)]
struct Shown {
    #[diesel(sql_type = diesel::sql_types::Text)]
    shown: String,
}

impl Work for Shows {
    const KIND: &'static str = "shows";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = String;

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<String, WorkError> {
        let sql = format!("SELECT ({})::text AS shown", self.sql);
        if self.diesel {
            return Ok(diesel::sql_query(sql).get_result::<Shown>(&mut *ctx.diesel()?)?.shown);
        }
        Ok(ctx.session()?.query(&sql, &[])?.get(0, 0).unwrap_or_default().to_owned())
    }
}

/// Sleeps on its target for ten minutes. Nothing fences what it might do there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfenced {}

impl Work for Unfenced {
    const KIND: &'static str = "unfenced";
    const REPEATABLE: bool = true;
    type Output = ();

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<(), WorkError> {
        ctx.session()?.execute_batch("SELECT pg_sleep(600)")?;
        Ok(())
    }
}

/// Holds a snapshot until the server ends that: asks for nothing, again and again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldSnapshot {
    driver: String,
    /// Between two questions.
    pause_ms: u64,
}

impl Work for HeldSnapshot {
    const KIND: &'static str = "held_snapshot";
    const REPEATABLE: bool = true;
    type Output = ();

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<(), WorkError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM public.t";
        let pause = || ctx.wait(Duration::from_millis(self.pause_ms));
        if self.driver == "diesel" {
            let mut connection = ctx.diesel()?;
            connection.batch_execute(begin)?;
            loop {
                pause()?;
                diesel::sql_query("SELECT 1").execute(&mut *connection)?;
            }
        }
        let mut session = ctx.session()?;
        session.execute_batch(begin)?;
        loop {
            pause()?;
            session.query("SELECT 1", &[])?;
        }
    }
}

/// Waits at a gate.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gated {
    gate: String,
    /// Don't look whether to stop.
    #[serde(default)]
    deaf: bool,
    /// An upload that it names, and doesn't read.
    upload: Option<Uuid>,
}

fn pass(gated: &Gated, ctx: &WorkContext<'_>) -> Result<i32, WorkError> {
    let (arrive, steps) = GATES.lock().unwrap().get(&gated.gate).unwrap().clone();
    arrive.send(ctx.attempt()).unwrap();
    let step = loop {
        if let Ok(step) = steps.lock().unwrap().recv_timeout(Duration::from_millis(20)) {
            break step;
        }
        if !gated.deaf {
            ctx.check()?;
        }
    };
    match step {
        Step::Succeed => Ok(ctx.attempt()),
        Step::Retry => Err(WorkError::Retry(JobError::new("again", "not yet").retryable())),
        Step::Fail => Err(WorkError::Fail(JobError::new("no", "never"))),
        Step::Panic => panic!("the gate said so"),
        Step::Snooze => Err(WorkError::Snooze(Duration::from_secs(3600))),
    }
}

impl Work for Gated {
    const KIND: &'static str = "gated";
    const REPEATABLE: bool = true;
    type Output = i32;
    fn upload(&self) -> Option<UploadArg> {
        self.upload.map(|id| UploadArg::new("/upload", id))
    }
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<i32, WorkError> {
        pass(self, ctx)
    }
}

/// The same, and it can be paused.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatedResumable(Gated);

impl Work for GatedResumable {
    const KIND: &'static str = "gated_resumable";
    const REPEATABLE: bool = true;
    const RESUMABLE: bool = true;
    type Output = i32;
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<i32, WorkError> {
        pass(&self.0, ctx)
    }
}

/// The same, and it may not be repeated.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatedOnce(Gated);

impl Work for GatedOnce {
    const KIND: &'static str = "gated_once";
    const REPEATABLE: bool = false;
    type Output = i32;
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<i32, WorkError> {
        pass(&self.0, ctx)
    }
}

/// An `execute` whose statements nobody has looked at before they run.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct UncheckedExecute(Execute);

impl Work for UncheckedExecute {
    const KIND: &'static str = "unchecked_execute";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Executed;
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Executed, WorkError> {
        self.0.run(ctx)
    }
}

/// Work that does what the guide tells nobody to do.
#[derive(Serialize, Deserialize)]
pub struct Careless {
    how: String,
}

impl Work for Careless {
    const KIND: &'static str = "careless";
    const REPEATABLE: bool = true;
    type Output = ();
    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<(), WorkError> {
        let batch = |connection: &mut PgConnection| ctx.commit_batch(connection, |_| Ok(1)).map(drop);
        match self.how.as_str() {
            "a checkpoint with a NUL" => ctx.save_checkpoint("a\0b"),
            "a checkpoint of 2 MiB" => ctx.save_checkpoint(&"x".repeat(2 << 20)),
            "a batch within a transaction" => ctx.diesel()?.transaction(batch),
            "a batch within the last transaction" => ctx.exactly_once(batch),
            "a phase with a NUL" => {
                ctx.phase("a\0b");
                ctx.wait(Duration::MAX)
            }
            other => Err(WorkError::Fail(JobError::new("unknown", other))),
        }
    }
}

/// Every kind of the tests, and the standard ones.
pub fn registry() -> Registry {
    slowlane::kinds::standard()
        .with::<DieselOnce>()
        .with::<Unfenced>()
        .with::<HeldSnapshot>()
        .with::<slowlane::kinds::carrier_report::CarrierReport>()
        .with::<Gated>()
        .with::<GatedOnce>()
        .with::<GatedResumable>()
        .with::<DieselBatches>()
        .with::<Careless>()
        .with::<UncheckedExecute>()
        .with::<Shows>()
}
