//! One run of one server: so many heavy statements at once, and what its other requests see meanwhile.
//!
//! Knows a server by its [`Contestant`]: how it is started, and how it says what it does. What is measured, and how, is
//! the same for all of them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::getpid;
use serde::Serialize;

use crate::cli::Failure;
use crate::cli::demo::child::{Dialect, Observed, Server};
use crate::cli::demo::probes::{Probe, Spread};
use crate::cli::demo::statement::Statement;
use crate::cli::demo::triggers::{Prepared, Triggers, database_path};
use crate::cli::private::Databases;

/// Between two intended requests of a probe.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How long the other requests of a run are sent, from the moment of its heavy ones: the same for every server and
/// number at once, so that a percentile is one of as many requests.
const SPAN: Duration = Duration::from_secs(10);
/// How long an idle server is looked at.
const IDLE_SPAN: Duration = Duration::from_secs(5);
/// Requests before the first that counts open connections.
const WARM_UP: Duration = Duration::from_millis(500);
/// The longest time for all of a run's work.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks at what is done.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What every server works with.
#[derive(Clone)]
pub struct Environment {
    /// This program.
    pub program: PathBuf,
    /// The databases.
    pub databases: Databases,
    /// The queue of a slowlane that is measured. It is this run's own: no other process on the same database takes jobs
    /// from it, not even a slowlane that an earlier run has left behind.
    pub queue: String,
}

/// A server that is measured.
pub struct Contestant {
    /// What it is called in a table.
    pub name: String,
    /// How it says what it does.
    pub dialect: Dialect,
    /// What starts it, for one heavy statement.
    pub command: Box<Starter>,
}

/// What starts a server.
pub type Starter = dyn Fn(&Environment, Statement) -> Command + Send + Sync;

impl Contestant {
    /// The demo's own server that does it wrong in this way.
    pub fn wrong(name: &str, mode: &'static str) -> Contestant {
        let command = move |environment: &Environment, statement: Statement| {
            let mut command = environment.program();
            command.args(["demo", "wrong", mode, "--sql", statement.sql()]);
            command.env("SLOWLANE_DEMO_URL", environment.databases.demo.to_url().expose());
            command
        };
        Contestant { name: name.to_owned(), dialect: Dialect::Events, command: Box::new(command) }
    }

    /// slowlane as anybody starts it, but for a queue of its own and a log that tells the threads.
    pub fn slowlane() -> Contestant {
        let command = |environment: &Environment, _: Statement| {
            let mut command = environment.program();
            command.args(["serve", "--listen", "127.0.0.1:0", "--target", "default=SLOWLANE_DEMO_URL"]);
            command
                .args(["--queues", &environment.queue, "--shutdown-grace", "4s", "--log-format", "json", "--log"])
                .arg(
                    "warn,slowlane::app::server=info,slowlane::http::jobs::submit=debug,slowlane::worker::executor=debug,\
                 slowlane::jobs=info",
                );
            command.env("SLOWLANE_DATABASE_URL", environment.databases.queue.to_url().expose());
            command.env("SLOWLANE_DEMO_URL", environment.databases.demo.to_url().expose());
            command
        };
        Contestant { name: "slowlane".to_owned(), dialect: Dialect::SlowlaneLog, command: Box::new(command) }
    }

    pub(super) fn start(&self, environment: &Environment, statement: Statement) -> Result<Server, Failure> {
        Server::start((self.command)(environment, statement), self.dialect)
    }
}

impl Environment {
    /// With a queue of this process's own.
    pub fn new(program: PathBuf, databases: Databases) -> Environment {
        Environment { program, databases, queue: format!("demo_blocking_{}", getpid()) }
    }

    /// This program, with nothing around it that would be a setting.
    fn program(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let is_setting = name.to_str().is_some_and(|name| name.starts_with("SLOWLANE_") || name == "DATABASE_URL");
            if is_setting {
                command.env_remove(name);
            }
        }
        // No slowlane.toml of the folder in which the demo was called.
        command.current_dir("/");
        command
    }
}

/// The threads of one piece of work, by the system's numbers.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct Threads {
    /// The one whose handler took it.
    pub handler: Option<i64>,
    /// The one that worked on it.
    pub work: Option<i64>,
}

/// What the other requests of an idle server see.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// GET /healthz.
    pub healthz_ms: Spread,
    /// A request that asks the database.
    pub database_ms: Spread,
}

/// One run: so many heavy statements at once.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The server's name.
    pub server: String,
    /// The heavy statement.
    pub work: Statement,
    /// How many at once.
    pub at_once: usize,
    /// How long each caller waited for an answer.
    pub trigger_ms: Spread,
    /// GET /healthz meanwhile, for 10 s from the moment of the first request.
    pub healthz_ms: Spread,
    /// A request that asks the database, meanwhile: of a wrong server and of FastAPI's through the pool of the heavy
    /// work, of slowlane through a pool of its own.
    pub database_ms: Spread,
    /// The same two before there was anything to do.
    pub idle: Idle,
    /// From the first request to the end of the last work, in milliseconds.
    pub all_done_ms: f64,
    /// For each piece of work.
    pub threads: Vec<Threads>,
}

/// A server under measure, with what an idle one looks like.
pub struct Measured<'m> {
    contestant: &'m Contestant,
    server: Server,
    statement: Statement,
    /// The path of a request that asks the database.
    database: String,
    queue: String,
    idle: Idle,
}

impl Measured<'_> {
    /// Starts a server, and looks at it while it is idle.
    ///
    /// # Errors
    /// When it doesn't start.
    pub fn start<'m>(
        environment: &Environment,
        contestant: &'m Contestant,
        statement: Statement,
    ) -> Result<Measured<'m>, Failure> {
        let server = contestant.start(environment, statement)?;
        let database = database_path(&server, contestant.dialect, &environment.queue)?;
        let (healthz, queries) = probes(&server, &database, WARM_UP)?;
        healthz.finish().and(queries.finish())?;
        let (healthz, queries) = probes(&server, &database, IDLE_SPAN)?;
        let idle = Idle { healthz_ms: healthz.finish()?, database_ms: queries.finish()? };
        Ok(Measured { contestant, server, statement, database, queue: environment.queue.clone(), idle })
    }

    /// Has it do so many pieces of its work at once. `on_done` is told how many of them are done.
    ///
    /// # Errors
    /// When a request is refused, a piece of work fails, or not everything is done within 10 minutes.
    pub fn run(&self, at_once: usize, on_done: impl Fn(usize)) -> Result<Run, Failure> {
        let before = Before::of(&self.server.observed());
        let prepared = Prepared::new(&self.server, self.contestant.dialect, self.statement, &self.queue, at_once)?;
        // Both are called off where this ends early.
        let (healthz, queries) = probes(&self.server, &self.database, SPAN)?;
        let triggers = prepared.send(before.done);
        self.wait_for_all(&before, at_once, &triggers, on_done).map_err(|why| {
            format!("{}, {at_once} at once of {}: {why}", self.contestant.name, self.statement.name())
        })?;
        let all_done_ms = milliseconds(triggers.began.elapsed());
        let answers = triggers.answers()?;
        if answers.iter().any(|answer| answer.accepted.is_none()) {
            return Err(
                format!("{}: the work was done, and its caller was told otherwise", self.contestant.name).into()
            );
        }
        let (healthz_ms, database_ms) = (healthz.finish()?, queries.finish()?);
        let observed = self.server.observed();
        let threads = answers
            .iter()
            .filter_map(|answer| answer.accepted.as_ref())
            .map(|id| Threads { handler: observed.handled.get(id).copied(), work: observed.working.get(id).copied() });
        let latencies: Vec<Duration> = answers.iter().map(|answer| answer.latency).collect();
        Ok(Run {
            server: self.contestant.name.clone(),
            work: self.statement,
            at_once,
            trigger_ms: Spread::of(&latencies, 0),
            healthz_ms,
            database_ms,
            idle: self.idle,
            all_done_ms,
            threads: threads.collect(),
        })
    }

    fn wait_for_all(
        &self,
        before: &Before,
        at_once: usize,
        triggers: &Triggers,
        on_done: impl Fn(usize),
    ) -> Result<(), Failure> {
        let until = Instant::now() + RUN_TIMEOUT;
        let done = |observed: &Observed| observed.done.len().saturating_sub(before.done);
        let is_over =
            |observed: &Observed| done(observed) >= at_once || observed.failed > before.failed || observed.has_ended();
        loop {
            self.server.wait_until(LOOK_EVERY, is_over);
            let observed = self.server.observed();
            on_done(done(&observed));
            if done(&observed) >= at_once {
                return Ok(());
            }
            let why = match () {
                () if observed.failed > before.failed => "some of the work failed",
                () if observed.has_ended() => "the server ended",
                () if Instant::now() > until => "not everything was done in time",
                () => "",
            };
            if !why.is_empty() {
                return Err(format!("{why}: {}", observed.last_lines()).into());
            }
            drop(observed);
            if let Some(refused) = triggers.refused() {
                return Err(format!("a request was refused: {refused}").into());
            }
        }
    }
}

/// What a server had said before a run.
struct Before {
    done: usize,
    failed: usize,
}

impl Before {
    fn of(observed: &Observed) -> Before {
        Before { done: observed.done.len(), failed: observed.failed }
    }
}

/// A time as numbers of JSON say it.
pub(super) fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

fn probes(server: &Server, database: &str, span: Duration) -> Result<(Probe, Probe), Failure> {
    let url = |path: &str| format!("http://{}{path}", server.address);
    Ok((Probe::start(url("/healthz"), PROBE_EVERY, span)?, Probe::start(url(database), PROBE_EVERY, span)?))
}
